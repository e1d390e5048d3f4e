"""What the engine decides that no answer shows: its order, when requests enter, its drafts, and what it notes."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from test_engine_generate import PROMPTS
from test_speculation import LONG, SIX, kin, spoken

from proxytune.engines.hf import HFEngine, work
from proxytune.engines.hf.batching import Batches, Pending, is_out_of_memory
from proxytune.engines.hf.branch import Branch
from proxytune.engines.hf.costs import added, bandwidth, costs
from proxytune.engines.hf.decode import Decoding
from proxytune.engines.hf.drafting import Drafting, _in_order, _texts
from proxytune.engines.hf.plans import Plans
from proxytune.engines.hf.sampling import Noise, choose, choose_with_confidence
from proxytune.engines.requests import GenerateRequest, Prompt, ScoreRequest
from proxytune.errors import UserError
from proxytune.fusion import Static
from proxytune.fusion.arm import Arm
from proxytune.models.costs import MACHINES, StepCost
from proxytune.models.distinct import DistinctMembers
from proxytune.models.drafting import CONFIDENT, Grams
from proxytune.models.ensemble import Ensemble
from proxytune.models.static_state import COLUMNS
from proxytune.record import ArmCost, Bandwidth, Drafts, TaskCosts

BASE, PROXY = Arm("base"), Arm("proxy", rule=Static(1.0), experts=("expert:math",))
ROLES = ("base", "antiexpert", "expert:math")
REQUEST = GenerateRequest(Prompt((5, 6)), 40)


def distinct(family: Ensemble, *roles: str) -> DistinctMembers:
    return DistinctMembers(family, roles, lambda role: ())


def branch(*roles: str, request: GenerateRequest = REQUEST, index: int = 0, **fields) -> Branch:
    """One that the members of `roles` read, and that an arm without stop strings has produced."""
    stops = {"base": SimpleNamespace(reached=lambda tokens: None)}
    return Branch(Pending(index, request, (BASE,)), stops, [BASE], row=dict.fromkeys(roles, 0), **fields)


# --- order, entry, memory ---------------------------------------------------------------------------------------------


def test_the_longest_prompts_come_first_and_of_these_the_longest_answers(family):
    lengths = [(2, 3), (4, 1), (4, 2), (1, 5), (2, 4)]
    requests = [GenerateRequest(Prompt(tuple(range(5, 5 + prompt))), new) for prompt, new in lengths]
    assert [index for index, *_ in HFEngine(family, 1).generate(requests, [BASE])] == [2, 1, 4, 0, 3]


def test_continuations_of_one_prompt_are_scored_together_the_longest_text_first(family):
    one, other, short = (5, 9), (5, 8), (7, 7, 7)
    asked = [(one, 1), (short, 1), (other, 5), (one, 5), (short, 3), (other, 2)]
    requests = [ScoreRequest(Prompt(prompt), tuple(range(20, 20 + new))) for prompt, new in asked]
    assert [index for index, *_ in HFEngine(family, 1).score(requests, [BASE])] == [2, 5, 3, 0, 4, 1]


@pytest.mark.parametrize(
    ("branches", "joinable", "rooms", "entered"),
    [
        (3, True, [1, 3, 4, 8, 7, 1], [2, 3, 5]),  # of 8: 1 + 3 + 4, then 8, then 7 + 1
        (3, True, [0, 2, 2, 2, 2, 2], [4]),
        (3, False, [8, 8, 8], []),
        (0, False, [8, 8], [0, 1]),
    ],
)
def test_requests_enter_once_free_rows_have_cost_a_pass(branches, joinable, rooms, entered):
    decoding = SimpleNamespace(branches=[None] * branches, states=SimpleNamespace(joinable=joinable), idle=0)
    queues = [SimpleNamespace(room=room, size=8) for room in rooms]
    assert [at for at, queue in enumerate(queues) if Decoding.has_room(decoding, queue)] == entered


def run_batches(size: int, room: int, requests: int = 9) -> tuple[Batches, list[int], list[tuple[int, str]]]:
    """Requests answered by two arms, where memory has `room` for a batch: the sizes of batches, and the answers."""
    batches, sizes, arms = Batches(size), list[int](), (BASE, PROXY)

    def answer(queue):
        taken = queue.take()
        sizes.append(len(taken))
        for pending in taken[:room]:
            yield from ((pending.index, arm.name, None) for arm in pending.arms[:1])
        if len(taken) > room:
            raise MemoryError
        for pending in taken:
            yield from ((pending.index, arm.name, None) for arm in pending.arms[1:])

    found = batches.run([Pending(index, REQUEST, arms) for index in range(requests)], answer, None)
    return batches, sizes, [(index, name) for index, name, _ in found]


@pytest.mark.parametrize(
    ("size", "room", "sizes"), [(32, 9, [9]), (9, 4, [9, 4, 4, 1]), (3, 1, [3, *[1] * 9]), (2, 1, [2, *[1] * 9])]
)
def test_a_batch_without_room_is_halved_and_only_missing_answers_are_redone(size, room, sizes):
    batches, tried, found = run_batches(size, room)
    assert (tried, batches.size) == (sizes, size if room == 9 else room)
    assert sorted(found) == sorted(itertools.product(range(9), ("base", "proxy")))


def test_one_request_without_room_ends_the_run_in_one_line():
    with pytest.raises(UserError, match=r"^out of memory with one request at a time: "):
        run_batches(1, 0)


def test_out_of_memory_is_told_from_other_errors():
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(torch.OutOfMemoryError("CUDA"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.parametrize("per_batch", [2, 4])
def test_a_portion_on_a_gpu_counts_steps_as_well_and_fills_a_batch(family, per_batch, monkeypatch):
    monkeypatch.setattr(Ensemble, "device", torch.device("cuda"))
    weights = sum(weight.numel() for role in ROLES for weight in family[role].model.parameters())
    monkeypatch.setattr(work, "ACCELERATOR", weights * (3 + 7) / 0.25)  # a quarter of a second for reading ...
    monkeypatch.setattr(work, "STEP", per_batch / (3 * 7))  # ... and one for the steps of three members
    requests = [GenerateRequest(Prompt((5, 6, i)), max_new_tokens=7) for i in range(9)]
    for seconds, expected in ((4.9, max(3, per_batch)), (6.2, 4), (6.3, 5)):
        monkeypatch.setattr(work, "SECONDS", seconds)
        assert HFEngine(family, per_batch).portion(requests, [PROXY]) == expected


def test_a_portion_on_a_gpu_is_two_minutes_of_steps(family, monkeypatch):
    monkeypatch.setattr(Ensemble, "device", torch.device("cuda"))
    requests = [GenerateRequest(Prompt((5, 6, i)), max_new_tokens=100) for i in range(20)]
    assert HFEngine(family, 1).portion(requests, [PROXY]) == 120 // (100 * 3 * 0.03)


def test_static_states_have_room_for_a_text_and_a_draft_and_are_kept_for_their_batch_size(family):
    engine = HFEngine(family, 4, compile=True)
    states = engine._static_states(COLUMNS)
    assert states.compile is True and states.columns >= COLUMNS + 64
    assert engine._static_states(2 * COLUMNS - 65) is states and states.columns == 2 * COLUMNS
    assert engine._static_states(2 * COLUMNS - 63) is states and states.columns == 3 * COLUMNS
    engine.batches.size = 2
    assert engine._static_states(5) is not states
    assert HFEngine(family, compile=False)._static_states(5) is None


@pytest.mark.parametrize(
    ("speculate", "draft"), [("auto", None), ("off", 0), (False, 0), (0, 0), (1, 1), (5, 5), (64, 64)]
)
def test_how_many_tokens_may_be_drafted(family, speculate, draft):
    engine = HFEngine(family, speculate=speculate)
    assert (engine.draft, engine.drafts, engine.batch_size) == (draft, draft != 0, 32)
    with pytest.raises(UserError, match=r"engine\.speculate = 65: "):
        HFEngine(family, speculate=65)


# --- drafts -----------------------------------------------------------------------------------------------------------


def tokens_of_a_pass(found: float, right: float, most: int) -> float:
    """Expected: for each place whether a token is found and right, in all combinations."""
    total = 0.0
    for places in itertools.product((True, False), repeat=most):
        likely = math.prod(found * right if good else 1 - found * right for good in places)
        total += likely * (1 + len(list(itertools.takewhile(bool, places))))
    return total


def longest_draft(found: float, most: int, rows: int) -> float:
    """Expected: for each row how many tokens are found, in all combinations."""
    of_length = [found**n * (1 - found if n < most else 1) for n in range(most + 1)]
    every = itertools.product(range(most + 1), repeat=rows)
    return sum(math.prod(of_length[n] for n in lengths) * max(lengths) for lengths in every)


COSTS = {
    "base": StepCost(40, 13_000_000_000, MACHINES["cpu"]),
    "antiexpert": StepCost(22, 1_000_000_000, MACHINES["cpu"]),
    "expert:math": StepCost(22, 1_000_000_000, MACHINES["cpu"]),
}


def planned(family: Ensemble, most: int | None, right: tuple[int, int, int] = (0, 0, 0)) -> Plans:
    """Plans for a large base, after so many right and wrong tokens of all drafters."""
    plans = Plans(distinct(family, *ROLES), most)
    if most != 0:
        plans.costs = COSTS
    for name, wrong in zip(("sibling", "expert", "ngram"), right, strict=True):
        for _ in range(wrong):
            plans.acceptance[name].note(1, 0, False)
    return plans


def gains(rows: dict[str, int], branches: int, wrong: int, expert: str | None, longest: int) -> list[float]:
    """How many times as many tokens a second drafts of 1, 2, ... tokens bring, after so many `wrong` ones."""
    found, right = (3.4 + wrong) / (4 + wrong), 3.4 / (4 + wrong)
    drafting = branches if expert is None else rows[expert]
    plain = sum(COSTS[role].of(n) for role, n in rows.items())
    every = []
    for most in range(1, longest + 1):
        width, seconds = longest_draft(found, most, drafting), 0.0
        for role, n in rows.items():
            # The expert drafts token by token; the others read all of a draft at once.
            seconds += (width + 1) * COSTS[role].of(n) if role == expert else COSTS[role].of(n * (width + 1))
        tokens = (drafting * tokens_of_a_pass(found, right, most) + branches - drafting) / branches
        every.append(tokens * plain / seconds)
    return every


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_plan_promises_what_enumerating_all_outcomes_gives(family, most):
    every = [branch(*ROLES), branch(*ROLES), branch("base")]
    rows = {"base": 3, "antiexpert": 2, "expert:math": 2}
    plans = planned(family, most, (0, 1, 4)).make(every, "expert:math")
    for name, wrong, role in (("sibling", 0, None), ("expert", 1, "expert:math"), ("ngram", 4, None)):
        expected = gains(rows, 3, wrong, role, longest=most)[-1]
        assert (plans[name].most, plans[name].role) == (most, role)
        assert plans[name].gain == pytest.approx(expected)
    assert [plan.gain for plan in plans.values()] == sorted((plan.gain for plan in plans.values()), reverse=True)


def test_the_length_that_pays_most_is_planned_up_to_eight_and_drafters_that_do_not_pay_are_left_out(family):
    plans = planned(family, None, (0, 3, 40)).make([branch(*ROLES)], "expert:math")
    assert list(plans) == ["sibling"] and plans["sibling"].most == 8
    some = planned(family, None, (2, 40, 3)).make([branch(*ROLES)], "expert:math")
    expected = {
        name: gains(dict.fromkeys(ROLES, 1), 1, n, None, longest=8) for name, n in (("sibling", 2), ("ngram", 3))
    }
    assert list(some) == ["sibling", "ngram"]
    for name, plan in some.items():
        assert plan.gain == pytest.approx(max(expected[name])) and plan.gain > 1.05
        assert plan.most == 1 + expected[name].index(max(expected[name])) < 8


def test_without_drafts_branches_or_an_expert_there_are_fewer_plans(family):
    assert planned(family, 0).make([branch(*ROLES)], "expert:math") == planned(family, 5).make([], "expert:math") == {}
    assert set(planned(family, 5).make([branch("base")], None)) == {"sibling", "ngram"}
    assert Plans(distinct(family, *ROLES), 0).costs == {}
    assert Plans(distinct(family, *ROLES), None).costs.keys() == set(ROLES)


@pytest.mark.parametrize(
    ("drafter", "roles", "most", "ended", "sought"),
    [
        ("ngram", ROLES, 5, False, 3),
        ("expert", ROLES, 5, False, 4),  # it could not find a fourth token
        ("expert", ROLES, 3, False, 3),
        ("expert", ROLES, 5, True, 3),
        ("expert", ("expert:math",), 5, False, 0),  # it is right about itself
        (None, ROLES, 5, False, 0),
    ],
)
def test_what_is_noted_of_a_draft(family, drafter, roles, most, ended, sought):
    plans = planned(family, None)
    plans.note(branch(*roles, drafter=drafter, draft=(7, 8, 9), most=most, ended=ended), [2, 0])
    before, noted = (3.4 / 4, 3.4 / 4), plans.acceptance[drafter or "ngram"]
    after = (3.4 + 6) / (4 + 2 * sought), (3.4 + 2 + 0) / (4 + 3 + 1)
    assert (noted.found, noted.right) == pytest.approx(after if sought else before)


def drafting(most: int = 6) -> Drafting:
    return Drafting(SimpleNamespace(roles=()), SimpleNamespace(), {"base": {2}}, most)


PLANS = {
    "sibling": SimpleNamespace(most=3, role=None),
    "expert": SimpleNamespace(most=4, role="expert:math"),
    "ngram": SimpleNamespace(most=6, role=None),
}
REPEATED = GenerateRequest(Prompt((5, 6, 7, 8, 9, 10, 11, 12, 5, 6)), 40)


@pytest.mark.parametrize(
    ("roles", "request_", "tokens", "texts", "drafter", "draft"),
    [
        (ROLES, REQUEST, (20, 21), [(20, 21), (20, 21, 22, 23, 24, 25)], "sibling", (22, 23, 24)),
        (ROLES, REQUEST, (20, 21), [(20, 21)], "expert", ()),
        (("base",), REPEATED, (7, 8), [], "ngram", (9, 10, 11, 12, 5, 6)),
        (("base",), REQUEST, (20, 21), [], None, ()),
        (("base",), GenerateRequest(REPEATED.prompt, 5), (7, 8), [], "ngram", (9, 10)),  # room for three, one is chosen
        (("base",), GenerateRequest(REPEATED.prompt, 5), (7, 8, 9), [], "ngram", (10,)),
        (ROLES, GenerateRequest(REPEATED.prompt, 5), (7, 8, 9, 10), [], None, ()),
        (("base",), GenerateRequest(REPEATED.prompt, 4), (7,), [], None, ()),
    ],
)
def test_the_best_drafter_that_finds_a_draft_gives_one_that_fits(roles, request_, tokens, texts, drafter, draft):
    one = branch(*roles, request=request_, tokens=tokens)
    drafting()._look_up(one, PLANS, texts)
    assert (one.drafter, one.draft) == (drafter, draft)


def test_a_draft_ends_where_the_answers_of_all_arms_end():
    one = branch("base", tokens=(20,))
    one.arms = [BASE, PROXY]
    work = drafting()
    work.ends["proxy"] = {3}
    work._append(one, (7, 2, 8))
    assert (one.draft, one.ended) == ((7, 2, 8), False)
    one.draft, work.ends["proxy"] = (), {2, 3}
    work._append(one, (7, 2, 8))
    assert (one.draft, one.ended) == ((7, 2), True)
    other = branch("base", tokens=(20,))
    other.stops["base"].reached = lambda tokens: "stop" if tokens[-2:] == (7, 8) else None
    work._append(other, (7, 8, 9))
    assert (other.draft, other.ended, other.reading) == ((7, 8), True, (20, 7))


def test_the_expert_that_leads_most_long_answers_drafts_if_that_pays(family):
    short = GenerateRequest(Prompt((5, 6)), 4)
    every = [branch(*ROLES), branch(*ROLES), branch(*ROLES), *(branch(*ROLES, request=short) for _ in range(3))]
    leading = dict(zip(every, ["expert:math"] * 2 + ["expert:trivia"] * 4, strict=True))
    some = drafting()
    some.plans = planned(family, 5)
    role, plans = some._prepare(every, leading)
    assert (role, plans["expert"].role) == ("expert:math", "expert:math")
    assert some._prepare(every, {}) == (None, some.plans.make(every, None))
    some.plans = planned(family, None, (0, 50, 0))
    assert some._prepare(every, leading)[0] is None


@pytest.mark.parametrize("rows", [1, 2])
def test_an_expert_drafts_on_while_it_is_confident_and_has_room(rows):
    every = [branch(*ROLES, tokens=(20,), most=2) for _ in range(rows)]

    def drafted(share: float) -> list[int]:
        """The rows to be read on, where the likeliest token, 3, has this probability."""
        probabilities = torch.tensor([[(1 - share) / 3] * 3 + [share]]).expand(rows, 4)
        grown = drafting()._grow(every, dict.fromkeys(range(rows), ()), probabilities.log()[:, None], Noise(4))
        return [row for row, (_, goes_on) in grown.items() if goes_on]

    assert drafted(CONFIDENT - 0.01) == drafted(math.nan) == [] and every[0].draft == ()
    assert drafted(CONFIDENT + 0.01) == drafted(0.9) == list(range(rows))
    assert drafted(0.9) == [] and every[-1].draft == (3, 3), "as many as it may"
    ending = branch(*ROLES, tokens=(20,), most=2)
    assert drafting()._grow([ending], {0: ()}, torch.eye(4)[2:3, None] * 9, Noise(4)) == {0: (1, False)}
    assert (ending.draft, ending.ended) == ((2,), True)


@pytest.mark.parametrize("batch_size", [1, 6])
def test_an_expert_that_is_the_base_drafts_what_the_base_says(batch_size, monkeypatch):
    """Prompts and answers of several lengths, greedy and sampled: no draft is wrong."""
    monkeypatch.setattr("proxytune.engines.hf.plans.DRAFTERS", ("expert",))
    engine, _ = spoken(kin(0.0), LONG, SIX[2:3], 3, batch_size)
    assert engine.meter.accepted == engine.meter.drafted > 60


def test_texts_that_may_be_followed_are_those_of_the_request_and_of_the_other_arms():
    request = GenerateRequest(Prompt((5,)), 9, drafts=((1, 2),))
    every = [branch(request=request, tokens=(3,)), branch(index=4, tokens=(4,)), branch(request=request, tokens=(5,))]
    texts = _texts(every, {0: [(6, 7)], 9: [(8,)]})
    assert dict(texts) == {0: [(1, 2), (6, 7), (3,), (5,)], 4: [(4,)]}


def test_the_logits_of_an_expert_that_drafts_stand_in_the_order_of_their_places():
    """Another row has read three tokens at once, in columns 0 to 2; that of the expert one, and then in 3 and 5."""
    logits = torch.arange(6.0).expand(2, 6)[..., None]
    moved = _in_order([logits[:, :3], logits[:, 3:]], [[0, 3, 5], [0, 1, 2]])
    assert moved[..., 0].tolist() == [[0, 3, 5], [0, 1, 2]]
    assert _in_order([logits[:, :2]], [[0, 1], [0]])[..., 0].tolist() == [[0, 1], [0, 0]]
    assert _in_order([logits[:, :1], logits[:, 1:3]], [[0, 1, 2]] * 2).tolist() == logits[:, :3].tolist()


def test_a_guess_is_what_followed_the_longest_known_end_in_the_latest_answer():
    past = Grams()
    for text in ((1, 2, 3, 4, 5), (9, 3, 4, 6, 7), (8, 8)):
        past.add(text)
    assert past.after((0, 3, 4), 9) == (6, 7), "the latest"
    assert past.after((0, 2, 3, 4), 9) == (5,), "the longest"
    assert past.after((1, 2), 2) == (3, 4) and past.after((1, 2), 0) == ()
    assert past.after((4, 5), 9) == past.after((8, 8), 9) == past.after((4,), 9) == (), "nothing follows, or is known"


@pytest.mark.parametrize(
    ("guess", "most", "drafted", "places"),
    [((7, 8), 6, (7, 8, 9), (3, True)), ((7, 5), 6, (7, 8), (2, True)), ((), 6, (7,), (1, True)),
     ((7, 8), 1, (7,), (2, False)), ((7, 8), 2, (7, 8), (3, False))],
)  # fmt: skip
def test_an_expert_reads_of_a_guess_what_it_would_have_drafted(guess, most, drafted, places):
    one = branch("base", tokens=(20,), most=most)
    chosen = [(7, 0.9), (8, 0.9), (9, 0.9)][: 1 + len(guess)]
    assert (drafting()._extend(one, guess, chosen), one.draft) == (places, drafted)
    unsure, ends = branch("base", tokens=(20,), most=6), branch("base", tokens=(20,), most=6)
    assert (drafting()._extend(unsure, (7, 8), [(7, 0.9), (8, 0.1), (9, 0.9)]), unsure.draft) == ((2, False), (7,))
    assert (drafting()._extend(ends, (2, 8), [(2, 0.9), (8, 0.9), (9, 0.9)]), ends.ended) == ((1, False), True)


def test_guesses_are_read_while_they_pay(family):
    plans = planned(family, None)
    assert plans.guess("expert:math", 1) == 8
    for _ in range(40):
        plans.guessed.note(4, 0, False)
    assert plans.guess("expert:math", 1) == 0


def test_the_expert_with_the_largest_weight_drafts(family):
    both = Arm("both", rule=Static((0.2, 0.8)), experts=("expert:math", "expert:trivia"))
    decoding = Decoding(distinct(family, *both.roles), [both], 0, SimpleNamespace(), None)
    one = branch("base")
    one.arms = [BASE, both]
    for last, leading in (([0.2, 0.8], "expert:trivia"), ([0.8, 0.2], "expert:math"), ([0.5, 0.5], "expert:math")):
        decoding.weights[0, "both"].append(last)
        assert decoding._leading(one) == leading
    one.arms = [BASE]
    assert decoding._leading(one) is None


def test_passes_and_drafts_are_counted_by_branch(family):
    engine = HFEngine(family, speculate=0)
    found = [answer for _, _, answer in engine.generate([GenerateRequest(Prompt(PROMPTS[0]), 9)], [BASE])]
    assert vars(engine.meter) == {"passes": len(found[0].tokens) - 1, "drafted": 0, "accepted": 0}
    known = GenerateRequest(Prompt(PROMPTS[0]), 9, drafts=(found[0].tokens,))
    engine = HFEngine(family, speculate=3)
    list(engine.generate([known], [BASE]))
    assert vars(engine.meter) == {"passes": 2, "drafted": 6, "accepted": 6}  # 1, then twice 3 and one


def test_confidence_is_the_probability_of_the_token_that_is_chosen():
    logits = torch.randn(3, 11, generator=torch.Generator().manual_seed(0)) * 2
    sampled = GenerateRequest(Prompt((5,)), 9, temperature=0.7, seed=3)
    wanted = [(REQUEST, 0), (sampled, 4), (GenerateRequest(Prompt((5,)), 9, banned=(int(logits[2].argmax()),)), 1)]
    noise = Noise(11)
    parts = [logits[0], logits[1] + 0.7 * noise.of(3, 4), logits[2].clone()]
    parts[2][logits[2].argmax()] = -torch.inf
    tokens, confidence = choose_with_confidence(logits, wanted, noise)
    assert tokens.tolist() == choose(logits, wanted, noise).tolist()
    for row, part in enumerate(parts):
        shares = [math.exp(x) for x in part.tolist()]
        assert confidence[row].item() == pytest.approx(max(shares) / sum(shares))
        assert tokens[row].item() == shares.index(max(shares))
    assert not torch.equal(noise.of(3, 4), noise.of(4, 3)) and noise.of(3, 4) is noise.of(3, 4)


# --- costs ------------------------------------------------------------------------------------------------------------


def test_bytes_read_by_hand(family):
    """A GPT-2's embedding is its head and is read; a Llama's is not."""
    members = distinct(family, "base", "antiexpert", "expert:trivia")
    size = {role: sum(weight.nbytes for weight in family[role].model.parameters()) for role in members.roles}
    size["base"] -= family["base"].model.get_input_embeddings().weight.nbytes
    steps = Counter({("answers", "base"): 3, ("answers", "expert:trivia"): 2, ("prompts", "antiexpert"): 1})
    seconds = {("answers", "base"): 1.5, ("answers", "expert:trivia"): 0.25, ("prompts", "antiexpert"): 9.0}
    found = bandwidth(members, steps, seconds)
    assert (found.read, found.seconds) == (3 * size["base"] + 2 * size["expert:trivia"], 1.75)
    assert bandwidth(members, Counter(), {}) == Bandwidth()


def test_costs_are_added_field_by_field():
    arm, drafts = ArmCost(seconds=1.0, tokens=2, weights=3), Drafts(passes=1, drafted=2, accepted=3)
    one = TaskCosts(arms={"a": arm}, members={"x": 1.0}, drafts=drafts, bandwidth=Bandwidth(read=5, seconds=6.0))
    more = Bandwidth(read=50, seconds=60.0, copied=7.0)
    two = TaskCosts(arms={"a": arm, "b": arm}, members={"x": 2.0, "y": 3.0}, drafts=drafts, bandwidth=more)
    whole = TaskCosts(
        arms={"a": ArmCost(seconds=2.0, tokens=4, weights=3), "b": arm},
        members={"x": 3.0, "y": 3.0},
        drafts=Drafts(passes=2, drafted=4, accepted=6),
        bandwidth=Bandwidth(read=55, seconds=66.0, copied=7.0),
    )
    assert added(one, two) == added(two, one) == whole


def test_an_arm_without_a_token_costs_the_reading_of_the_prompts_alone(family):
    seconds = {("prompts", "base"): 10.0, ("answers", "base"): 8.0}
    found = costs(distinct(family, "base"), [BASE], {"base": {0: []}}, seconds)
    assert (found.arms["base"].seconds, found.members) == (10.0, {"base": 18.0})


def test_a_call_is_charged_nothing_of_one_that_was_left_early(family, monkeypatch):
    passed = itertools.count()
    monkeypatch.setattr("proxytune.models.clock.time.perf_counter", lambda: float(next(passed)))
    engine = HFEngine(family, 1, speculate=0)
    requests = [GenerateRequest(Prompt(tokens), 4) for tokens in PROMPTS[:3]]
    list(engine.generate(requests[:1], [BASE]))
    alone = engine.take_costs()
    left = engine.generate(requests, [BASE])
    next(left)
    left.close()
    assert not family.clock.running
    assert engine.take_costs() == TaskCosts()
    list(engine.generate(requests[:1], [BASE]))
    assert engine.take_costs().model_copy(update={"bandwidth": alone.bandwidth}) == alone
