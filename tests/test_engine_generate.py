"""Decoding: every arm's answer is that of a slow loop over one arm and one request, whatever shares its rows."""

import math
from collections import Counter
from dataclasses import replace

import engine_reference as reference
import pytest
import torch
from scipy.stats import chisquare
from tiny import tiny_family, tiny_mistral

from proxytune.engines.hf import HFEngine
from proxytune.engines.hf import decode as generate
from proxytune.engines.requests import GenerateRequest, Prompt
from proxytune.errors import UserError
from proxytune.fusion import MatchKL, Static
from proxytune.fusion.arm import Arm
from proxytune.fusion.contrastive import Contrastive
from proxytune.fusion.plausible import Plausible
from proxytune.models.ensemble import Ensemble
from proxytune.models.member import Member

BOTH = ("expert:math", "expert:trivia")
ARMS = [
    Arm("base"),
    Arm("expert", base="expert:trivia"),
    Arm("proxy", rule=Static(1.0), experts=("expert:trivia",)),
    Arm("zero", rule=Static(0.0), experts=("expert:math",)),
    Arm("half", rule=Static(0.5), experts=("expert:math",)),
    Arm("dynamic", rule=MatchKL(), experts=("expert:math",)),
    Arm("all", rule=MatchKL(solver="grid"), experts=BOTH),
    Arm("own antiexpert", rule=Static(0.7), experts=("expert:math",), antiexpert="expert:trivia"),
    Arm("filtered", rule=Plausible(1.0, min_p=0.02), experts=("expert:math",)),
    Arm("contrast", rule=Contrastive(0.3)),
]
PROMPTS = [(5, 9, 200, 31, 77, 8, 3), (101, 44), (250, 17, 17, 40), (5, 9, 200, 31, 77, 8, 3), (7,)]


def answers(ensemble, requests, arms, batch_size=None, speculate="auto"):
    """{(request index, arm name): Generated}"""
    found = {}
    for index, name, generated in HFEngine(ensemble, batch_size, speculate).generate(requests, arms):
        assert (index, name) not in found
        found[index, name] = generated
    assert len(found) == len(requests) * len(arms)
    return found


def assert_as_reference(ensemble, requests, arms, found, eos=(2,)):
    for index, request in enumerate(requests):
        for arm in arms:
            tokens, finish = reference.generate(ensemble, arm, request, eos)
            got = found[index, arm.name]
            assert (got.tokens, got.finish) == (tokens, finish), (index, arm.name)
            assert len(got.weights) == len(arm.experts)
            fused = reference.fused_after(ensemble, arm, request.prompt, tokens)
            torch.testing.assert_close(
                torch.tensor(got.weights).reshape(len(arm.experts), len(tokens)),
                fused.weights[:, :-1].float(),
                atol=2e-3,
                rtol=1e-3,
            )


GREEDY = [GenerateRequest(Prompt(tokens), 12 - i) for i, tokens in enumerate(PROMPTS)]
SAMPLED = [
    GenerateRequest(Prompt(tokens), 9, temperature=0.3 + 0.4 * i, top_p=1.0 if i % 2 else 0.8, seed=i)
    for i, tokens in enumerate(PROMPTS)
]


@pytest.mark.parametrize("requests", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_all_arms_together_equal_the_reference(family, requests):
    assert_as_reference(family, requests, ARMS, answers(family, requests, ARMS))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_batch_does_not_matter(family, batch_size):
    mixed = [*GREEDY, *SAMPLED]
    together, apart = answers(family, mixed, ARMS), answers(family, mixed, ARMS, batch_size)
    for key in together:
        assert (together[key].tokens, together[key].text) == (apart[key].tokens, apart[key].text)


@pytest.mark.parametrize("requests", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_experts_that_are_adapters_of_one_module_equal_the_reference(adapter_family, requests):
    assert_as_reference(adapter_family, requests, ARMS, answers(adapter_family, requests, ARMS))


@pytest.mark.parametrize("requests", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_member_may_read_a_prompt_of_its_own(family, requests):
    requests = [
        replace(request, prompt=Prompt(request.prompt.tokens, {"expert:trivia": (90, 91, 92, *request.prompt.tokens)}))
        for request in requests
    ]
    assert_as_reference(family, requests, ARMS, answers(family, requests, ARMS))


def test_a_shared_member_with_another_prompt_is_not_merged(family):
    shared = {"expert:math": replace(family["antiexpert"], role="expert:math")}
    ensemble = Ensemble({**family.members, **shared}, family.tokenizer)
    own = {"expert:math": (90, 91, 92)}
    requests = [GenerateRequest(Prompt(PROMPTS[0]), 8), GenerateRequest(Prompt(PROMPTS[1], own), 8)]
    arms = [Arm("base"), Arm("proxy", rule=Static(1.0), experts=("expert:math",))]
    found = answers(ensemble, requests, arms)
    assert_as_reference(ensemble, requests, arms, found)
    assert found[0, "proxy"].tokens == found[0, "base"].tokens
    assert found[1, "proxy"].tokens != found[1, "base"].tokens


@pytest.mark.parametrize("requests", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_arms_together_equal_each_arm_alone(family, requests):
    together = answers(family, requests, ARMS)
    for arm in ARMS:
        alone = answers(family, requests, [arm])
        for index in range(len(requests)):
            assert together[index, arm.name].tokens == alone[index, arm.name].tokens
            assert together[index, arm.name].text == alone[index, arm.name].text


@pytest.mark.parametrize("requests", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_weight_zero_is_the_base(family, requests):
    found = answers(family, requests, ARMS)
    for index in range(len(requests)):
        assert found[index, "zero"].tokens == found[index, "base"].tokens


class Counting(Member):
    """Counts the rows of every state."""

    def read(self, state, tokens, mask=None, keep=1):
        self.rows.append(tokens.shape[0])
        return super().read(state, tokens, mask, keep)


def counting(family) -> tuple[Ensemble, dict[str, list[int]]]:
    rows = {}
    members = {}
    for role, member in family.members.items():
        members[role] = Counting(**vars(member))
        object.__setattr__(members[role], "rows", rows.setdefault(role, []))
    return Ensemble(members, family.tokenizer), rows


def test_arms_that_agree_cost_one_and_members_without_an_arm_stop(family):
    ensemble, rows = counting(family)
    same = [ARMS[0], ARMS[3], Arm("again", rule=Static(0.0), experts=("expert:trivia",))]
    list(HFEngine(ensemble, speculate=0).generate(GREEDY, [ARMS[0]]))
    alone = list(rows["base"])
    rows["base"].clear()
    list(HFEngine(ensemble, speculate=0).generate(GREEDY, same))
    assert rows["base"] == alone
    assert rows["antiexpert"] == alone, "one antiexpert for two experts"
    assert rows["tuned:math"] == []

    # An end of sequence for the base alone: the others go on without it.
    long = [GenerateRequest(Prompt(PROMPTS[0]), 10)]
    first = answers(family, long, [ARMS[0]])[0, "base"].tokens
    assert answers(family, long, [ARMS[1]])[0, "expert"].tokens[:3] != first[:3]
    family_stopping = [replace(long[0], until=(family.tokenizer.decode(first[2:3]),))]
    for role in rows:
        rows[role].clear()
    found = answers(ensemble, family_stopping, ARMS[:2], speculate=0)
    assert len(found[0, "base"].tokens) < len(found[0, "expert"].tokens)
    assert len(rows["base"]) == len(found[0, "base"].tokens)
    assert len(rows["expert:trivia"]) == len(found[0, "expert"].tokens)


def test_equal_prompts_are_read_once(family):
    ensemble, rows = counting(family)
    requests = [GenerateRequest(Prompt(PROMPTS[0]), 3, temperature=1.0, seed=seed) for seed in range(8)]
    found = answers(ensemble, requests, ARMS[:1])
    assert rows["base"] == [1, 8, 8]
    assert len({generated.tokens for generated in found.values()}) > 4


def test_end_of_sequence_tokens_are_the_tokenizers_and_the_bases():
    family = tiny_family()
    request = GenerateRequest(Prompt(PROMPTS[0]), 10)
    free = answers(family, [request], ARMS[:2])
    listed = free[0, "base"].tokens[3]
    assert listed not in free[0, "expert"].tokens
    family["base"].model.generation_config.eos_token_id = [2, listed]
    ended = answers(family, [request], ARMS[:2])
    assert ended[0, "base"].finish == "eos"
    assert ended[0, "base"].tokens == free[0, "base"].tokens[: free[0, "base"].tokens.index(listed) + 1]
    assert ended[0, "base"].text == family.tokenizer.decode(list(ended[0, "base"].tokens[:-1]))
    assert ended[0, "expert"] == free[0, "expert"]


def test_no_new_tokens_is_an_empty_answer(family):
    ensemble, rows = counting(family)
    requests = [GenerateRequest(Prompt(PROMPTS[0]), 0)]
    found = answers(ensemble, requests, ARMS)
    assert {(g.tokens, g.text, g.finish) for g in found.values()} == {((), "", "length")}
    assert found[0, "all"].weights == ((), ())
    assert not any(rows.values())


def test_samples_follow_the_arms_distribution(family):
    arm = ARMS[2]
    prompt = Prompt(PROMPTS[1])
    draws = 4000
    requests = [GenerateRequest(prompt, 1, temperature=1.5, seed=seed) for seed in range(draws)]
    drawn = Counter(g.tokens[0] for g in answers(family, requests, [arm], batch_size=1000).values())
    probs = (reference.fused_after(family, arm, prompt, ()).logits[-1] / 1.5).softmax(-1).double()
    common = [token for token in range(len(probs)) if probs[token] * draws > 10]
    rest = draws - sum(drawn[token] for token in common)
    observed = [*(drawn[token] for token in common), rest]
    expected = [*(float(probs[token]) * draws for token in common), float(1 - probs[common].sum()) * draws]
    assert len(common) > 3
    assert chisquare(observed, expected).pvalue > 1e-3


def test_equal_logits_go_to_the_smallest_id(family):
    class Flat:
        id, formula, paper = "flat", "0", "none"

        def fuse(self, base, experts, antiexpert):
            flat = torch.zeros_like(base)
            flat[..., 7:30] = 1.0
            return Static(0.0).fuse(flat, experts, antiexpert)

    arm = Arm("flat", rule=Flat(), experts=("expert:math",))
    assert answers(family, GREEDY[:1], [arm])[0, "flat"].tokens == (7,) * GREEDY[0].max_new_tokens


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens"),
        ({"until": ("\n", "")}, "empty stop string"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"seed": -1}, "seed"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        GenerateRequest(**{"prompt": Prompt((1,)), "max_new_tokens": 4, **wrong})


RAGGED = [replace(request, max_new_tokens=1 + 5 * i % 12) for i, request in enumerate([*GREEDY, *SAMPLED, *GREEDY])]


def test_waiting_requests_enter_as_others_leave(family, monkeypatch):
    ensemble, rows = counting(family)
    entering = answers(ensemble, RAGGED, ARMS, batch_size=4)
    steps = len(rows["base"])
    monkeypatch.setattr(generate, "ENTRY", math.inf)
    rows["base"].clear()
    grouped = answers(ensemble, RAGGED, ARMS, batch_size=4)
    assert steps < len(rows["base"]), "fewer and fuller steps"
    for key in grouped:
        assert entering[key].tokens == grouped[key].tokens


def test_members_with_a_sliding_window_equal_the_reference(family):
    member = Member("expert:math", tiny_mistral(family.vocab_size, seed=3), family.vocab_size)
    ensemble = Ensemble({**family.members, "expert:math": member}, family.tokenizer)
    arms = [Arm("expert", base="expert:math"), Arm("proxy", rule=Static(1.0), experts=("expert:math",))]
    assert_as_reference(ensemble, RAGGED, arms, answers(ensemble, RAGGED, arms, batch_size=4))
