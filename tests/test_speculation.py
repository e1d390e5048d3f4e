"""Speculation: the very tokens of decoding one by one, in fewer passes."""

import logging
from dataclasses import replace

import pytest
import torch
from test_engine_batching import Small
from test_engine_generate import ARMS, GREEDY, PROMPTS, SAMPLED, assert_as_reference, counting
from tiny import tiny_llama, tiny_mistral, tiny_tokenizer

from proxytune import validation
from proxytune.cli.schema import EngineConfig
from proxytune.engines.hf import HFEngine
from proxytune.engines.requests import GenerateRequest, Prompt
from proxytune.errors import UserError
from proxytune.fusion import MatchKL, Static
from proxytune.fusion.arm import Arm
from proxytune.models.ensemble import Ensemble
from proxytune.models.member import Member
from proxytune.record import ArmCost, Bandwidth, Drafts, Provenance, Record, TaskCosts, Timings
from proxytune.reporting.speeds import speeds

OWN = ("expert:math",)
SIX = [
    Arm("base"),
    Arm("expert", base="expert:math"),
    Arm("proxy", rule=Static(1.0), experts=OWN),
    Arm("half", rule=Static(0.5), experts=OWN),
    Arm("dynamic", rule=MatchKL(), experts=OWN),
    Arm("all", rule=MatchKL(experts="joint"), experts=("expert:math", "expert:trivia")),
]
LONG = [replace(request, max_new_tokens=7 + 5 * i) for i, request in enumerate([*GREEDY[:3], *SAMPLED[:3]])]
"""Ragged prompts and answers."""


def kin(noise: float) -> Ensemble:
    """A family whose members differ by `noise` times the spread of their weights, so that they often agree."""
    tokenizer = tiny_tokenizer()
    size = len(tokenizer)
    members = {}
    for seed, role in enumerate(["base", "antiexpert", "expert:math", "expert:trivia"]):
        model = tiny_llama(size, seed=7)
        model.lm_head.weight.data *= 3  # an expert that is never sure drafts nothing
        generator = torch.Generator().manual_seed(seed)
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.data += noise * weight.std() * torch.randn(weight.shape, generator=generator)
        members[role] = Member(role, model, size, identity=role)
    return Ensemble(members, tokenizer)


@pytest.fixture(scope="module")
def near():
    return kin(0.02)


def spoken(ensemble, requests, arms, speculate, batch_size=None):
    """The engine after its answers, and these by request and arm."""
    engine = HFEngine(ensemble, batch_size, speculate=speculate)
    return engine, {(index, name): answer for index, name, answer in engine.generate(requests, arms)}


def assert_same(found, plain):
    assert found.keys() == plain.keys()
    for key, answer in plain.items():
        got = found[key]
        assert (got.tokens, got.text, got.finish) == (answer.tokens, answer.text, answer.finish), key
        weights, expected = torch.tensor(got.weights), torch.tensor(answer.weights)
        assert weights.shape == expected.shape
        if key[1] != "joint":  # there several weights are equally good, and rounding chooses between them
            # Where an expert hardly differs from the antiexpert, rounding moves the weight that fits best.
            torch.testing.assert_close(weights, expected, atol=0.05, rtol=0.02)
        assert (got.trace is None) == (answer.trace is None)
        if answer.trace is not None:
            assert got.trace.p == pytest.approx(answer.trace.p, abs=2e-5)
            assert got.trace.p_base == pytest.approx(answer.trace.p_base, abs=2e-5)
            assert got.trace.differs == answer.trace.differs
            assert got.trace.top.keys() == answer.trace.top.keys()
            for role, tops in answer.trace.top.items():
                assert [[token for token, _ in top[:1]] for top in got.trace.top[role]] == [
                    [token for token, _ in top[:1]] for top in tops
                ]


@pytest.mark.parametrize("arms", [SIX[2:3], SIX[4:5], SIX[5:6], SIX], ids=["static", "dynamic", "joint", "six"])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_tokens_are_those_of_decoding_one_by_one(near, arms, batch_size):
    _, plain = spoken(near, LONG, arms, 0, batch_size)
    for speculate in (5, "auto"):
        engine, found = spoken(near, LONG, arms, speculate, batch_size)
        assert_same(found, plain)
        assert engine.meter.accepted > 20


@pytest.mark.parametrize("speculate", [1, 3])
def test_every_kind_of_member_and_rule_equals_the_slow_reference(family, speculate):
    """A GPT-2, a Llama, adapters' rules, arms that part at once: drafts are mostly wrong."""
    requests = [*GREEDY, *SAMPLED]
    engine, found = spoken(family, requests, ARMS, speculate)
    assert_as_reference(family, requests, ARMS, found)
    assert 0 < engine.meter.accepted < engine.meter.drafted


def test_adapters_of_one_module_and_prompts_of_their_own(adapter_family):
    requests = [
        replace(request, prompt=Prompt(request.prompt.tokens, {"expert:trivia": (90, 91, 92, *request.prompt.tokens)}))
        for request in [*GREEDY, *SAMPLED]
    ]
    _, found = spoken(adapter_family, requests, ARMS, 4)
    assert_as_reference(adapter_family, requests, ARMS, found)


def test_traces_are_those_of_the_tokens_taken(near):
    requests = [replace(request, trace="full") for request in LONG[:3]]
    _, plain = spoken(near, requests, SIX[:4], 0)
    assert_same(spoken(near, requests, SIX[:4], 5)[1], plain)


def test_the_base_reads_fewer_times(near):
    ensemble, rows = counting(near)
    request = [GenerateRequest(Prompt(PROMPTS[0]), 40)]
    spoken(ensemble, request, SIX[2:3], 0)
    plain = {role: len(read) for role, read in rows.items()}
    for read in rows.values():
        read.clear()
    engine, found = spoken(ensemble, request, SIX[2:3], 6)
    assert plain["base"] == len(found[0, "proxy"].tokens)
    assert len(rows["base"]) == len(rows["antiexpert"]) < plain["base"] / 2
    # The expert's drafts are what it has to read anyway: its only extra passes are those over rejected tokens.
    assert len(rows["expert:math"]) - plain["expert:math"] <= engine.meter.drafted - engine.meter.accepted


def test_the_expert_reads_at_once_what_an_earlier_answer_has():
    ensemble, rows = counting(kin(0.001))
    first = [GenerateRequest(Prompt(prompt), 30) for prompt in PROMPTS[:3]]
    spoken(ensemble, first, SIX[2:3], 6, 1)
    alone = len(rows["expert:math"])
    rows["expert:math"].clear()
    found = spoken(ensemble, [*first, *first], SIX[2:3], 6, 1)[1]
    assert len(rows["expert:math"]) < 1.5 * alone
    assert [found[i, "proxy"].tokens for i in range(3)] == [found[i + 3, "proxy"].tokens for i in range(3)]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_guesses_from_earlier_answers_are_right_and_wrong(near, batch_size):
    first = [GenerateRequest(Prompt(prompt), 30) for prompt in PROMPTS[:3]]
    asked = [*first, *[replace(one, prompt=Prompt((9, *one.prompt.tokens))) for one in first], *SAMPLED[:3]]
    found, plain = (spoken(near, asked, SIX[2:4], speculate, batch_size)[1] for speculate in (6, 0))
    assert_same(found, plain)


def test_stop_strings_and_ends_inside_a_draft(near):
    """Every token of an answer in turn is what ends it, as a stop string over a border of tokens or as an end token."""
    request = GenerateRequest(Prompt(PROMPTS[0]), 24)
    whole = spoken(near, [request], SIX[2:3], 0)[1][0, "proxy"]
    for at in range(1, 12):
        stop = near.tokenizer.decode(list(whole.tokens[at : at + 2]))
        stopped = [replace(request, until=(stop[1:] or stop,))]
        assert_same(spoken(near, stopped, SIX[:4], 6)[1], spoken(near, stopped, SIX[:4], 0)[1])
        ended = Ensemble(near.members, near.tokenizer, [near.tokenizer.convert_ids_to_tokens(whole.tokens[at])])
        plain = spoken(ended, [request], SIX[:4], 0)[1]
        assert plain[0, "proxy"].finish == "eos"
        assert_same(spoken(ended, [request], SIX[:4], 6)[1], plain)


def test_another_arms_answer_is_verified_not_decoded(near):
    ensemble, rows = counting(near)
    requests = [GenerateRequest(Prompt(tokens), 40) for tokens in PROMPTS[:3]]
    known = spoken(near, requests, SIX[2:3], 0)[1]
    drafted = [replace(one, drafts=(known[i, "proxy"].tokens,)) for i, one in enumerate(requests)]
    other = [Arm("more", rule=Static(1.1), experts=OWN)]
    plain = spoken(ensemble, requests, other, 0)[1]
    before = len(rows["base"])
    rows["base"].clear()
    assert_same(spoken(ensemble, drafted, other, 6)[1], plain)
    assert len(rows["base"]) < 0.6 * before
    # Drafts that fit nothing change nothing.
    strange = [replace(one, drafts=((5, 6), (), tuple(range(50)))) for one in requests]
    assert_same(spoken(ensemble, strange, other, 6)[1], plain)


def test_waiting_requests_enter_rows_with_drafts(near):
    requests = [replace(one, max_new_tokens=1 + 7 * i % 19) for i, one in enumerate([*LONG, *LONG])]
    assert_same(spoken(near, requests, SIX, 5, 4)[1], spoken(near, requests, SIX, 0, 4)[1])


def test_out_of_memory_while_speculating(near):
    member = Small(**vars(near["base"]))
    object.__setattr__(member, "room", 4)
    ensemble = Ensemble({**near.members, "base": member}, near.tokenizer)
    engine, found = spoken(ensemble, LONG, SIX[2:5], 4, 8)
    assert engine.batch_size < 8
    assert_same(found, spoken(near, LONG, SIX[2:5], 0)[1])


def test_a_sliding_window_is_decoded_token_by_token(near, caplog):
    member = Member("expert:math", tiny_mistral(near.vocab_size, seed=3), near.vocab_size)
    ensemble = Ensemble({**near.members, "expert:math": member}, near.tokenizer)
    with caplog.at_level(logging.INFO):
        engine, found = spoken(ensemble, LONG[:3], SIX, 6)
        list(engine.generate(LONG[:3], SIX))
    assert caplog.text.count("no speculation: expert:math") == 1
    assert engine.meter.drafted == 0
    assert_same(found, spoken(ensemble, LONG[:3], SIX, 0)[1])


def test_short_answers_are_not_drafted(near):
    requests = [replace(request, max_new_tokens=4) for request in GREEDY]
    assert spoken(near, requests, SIX, 6)[0].meter.drafted == 0


def test_the_same_call_makes_the_same_drafts(near):
    """What is drafted follows from the answers and from a table, not from a clock: also the last digits are equal."""
    engine, first = spoken(near, LONG, SIX, "auto")
    assert {(i, name): answer for i, name, answer in engine.generate(LONG, SIX)} == first


@pytest.mark.parametrize("wrong", [-1, 1000, "fast", True, 2.5])
def test_a_setting_that_makes_no_sense_is_refused(near, wrong):
    with pytest.raises(UserError, match=r"engine\.speculate"):
        HFEngine(near, speculate=wrong)


@pytest.mark.parametrize("wrong", [-1, 65, "fast", 2.5])
def test_the_setting_is_checked_before_models_load(wrong):
    with pytest.raises(UserError, match=r"speculate.*auto, off, or an integer from 0 to 64"):
        validation.check(EngineConfig, {"_target_": "proxytune.engines.hf.HFEngine", "speculate": wrong})
    for right in ("auto", "off", False, 0, 6):
        validation.check(EngineConfig, {"_target_": "proxytune.engines.hf.HFEngine", "speculate": right})


def test_what_drafts_brought_is_said_in_a_line():
    arm = ArmCost(seconds=1.0, tokens=1500, weights=10)
    drafts = Drafts(passes=400, drafted=1000, accepted=800)
    bandwidth = Bandwidth(read=6_000_000_000, seconds=1.5, copied=8e9)
    costs = {
        "open": TaskCosts(
            arms={"proxy": arm}, members={"base": 1.0, "expert:x": 0.5}, drafts=drafts, bandwidth=bandwidth
        ),
        "plain": TaskCosts(arms={"proxy": arm}, members={"base": 2.0}),
        "stored": TaskCosts(),
    }
    timings = Timings(costs=costs, task_seconds={"open": 2.0, "plain": 4.0, "stored": 1.0})
    assert list(speeds(Record(tasks={}, provenance=Provenance(timings=timings)))) == [
        "open: 1,500 tokens of all arms in 2 s, 750/s; base 50 %, expert:x 25 % of the time; "
        "3 tokens a pass, 80 % of 1,000 drafted tokens right; weights read at 4 GB/s (a copy in memory: 8)",
        "plain: 1,500 tokens of all arms in 4 s, 375/s; base 50 % of the time",
    ]
