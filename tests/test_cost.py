"""What an arm costs though arms share the models' passes: by hand, against each arm alone, and in a run's record."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_family

from proxytune.engines.hf import HFEngine
from proxytune.engines.hf.costs import added, costs, weight_bytes
from proxytune.engines.requests import GenerateRequest, Prompt, ScoreRequest
from proxytune.experiment import ledger
from proxytune.fusion import Static
from proxytune.fusion.arm import Arm
from proxytune.models import clock as clocks
from proxytune.models.clock import Clock
from proxytune.models.distinct import DistinctMembers
from proxytune.models.member import Member
from proxytune.record import ArmCost, TaskCosts

ARMS = [
    Arm("base"),
    Arm("tuned", base="tuned:math"),
    Arm("proxy", rule=Static(1.0), experts=("expert:math",)),
    Arm("weak", rule=Static(0.3), experts=("expert:math",)),
]


@pytest.fixture(scope="module")
def family():
    return tiny_family()


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that counts the tokens that members read: one second each."""
    read, passed = Member.read, [0.0]

    def counting(self, state, tokens, mask=None, keep=1):
        passed[0] += tokens.numel() if mask is None else float(mask.sum())
        return read(self, state, tokens, mask, keep)

    monkeypatch.setattr(Member, "read", counting)
    monkeypatch.setattr(clocks.time, "perf_counter", lambda: passed[0])


def test_costs_by_hand(family) -> None:
    roles = [role for arm in ARMS for role in arm.roles]
    members = DistinctMembers(family, roles, lambda role: ())
    # Base reads "ab", "ac" and "abd" for its three arms: a, b, c and d are four tokens, read once each.
    answers = {"base": {0: [1, 2]}, "proxy": {0: [1, 3]}, "weak": {0: [1, 2, 4]}, "tuned": {0: [9]}}
    seconds = {("prompts", "base"): 10.0, ("answers", "base"): 8.0, ("prompts", "tuned:math"): 5.0}
    seconds |= {("answers", "tuned:math"): 3.0, ("answers", "expert:math"): 4.0, ("rule", "proxy"): 0.5}
    found = costs(members, ARMS, answers, seconds)
    # The expert reads a, b, c and d too, but for proxy and weak alone.
    expected = {"base": 10 + 8 * 2 / 4, "tuned": 5 + 3, "proxy": 10 + 8 * 2 / 4 + 4 * 2 / 4 + 0.5}
    assert {arm: found.arms[arm].seconds for arm in expected} == expected
    assert found.arms["weak"].seconds == 10 + 8 * 3 / 4 + 4 * 3 / 4
    assert {arm: cost.tokens for arm, cost in found.arms.items()} == {"base": 2, "tuned": 1, "proxy": 2, "weak": 3}
    assert found.members == {"base": 18, "tuned:math": 8, "expert:math": 4, "antiexpert": 0}
    twice = added(found, found)
    assert twice.arms["proxy"] == ArmCost(seconds=33, tokens=4, weights=found.arms["proxy"].weights)
    assert twice.members["base"] == 36 and added(TaskCosts(), found) == found


def test_an_arm_among_others_costs_what_it_costs_alone(family, ticks) -> None:
    prompts = [Prompt(tuple(range(3 + i, 9 + i))) for i in range(6)]
    requests = [GenerateRequest(prompt, 12) for prompt in prompts]
    engine = HFEngine(family)
    lengths = {arm: [0] * len(requests) for arm in ("base", "proxy", "tuned", "weak")}
    for index, arm, answer in engine.generate(requests, ARMS):
        lengths[arm][index] = len(answer.tokens)
    together = engine.take_costs()
    assert engine.take_costs() == TaskCosts()
    for arm in ARMS:
        list(engine.generate(requests, [arm]))
        alone = engine.take_costs().arms[arm.name]
        assert together.arms[arm.name].seconds == pytest.approx(alone.seconds, rel=0.1)
        assert together.arms[arm.name].tokens == alone.tokens == sum(lengths[arm.name])
    whole = sum(together.members.values())
    assert whole < sum(cost.seconds for cost in together.arms.values())
    assert together.arms["base"].seconds < together.members["base"]


def test_scored_answers_cost_what_they_cost_alone(family, ticks) -> None:
    requests = [ScoreRequest(Prompt((3, 4, 5)), tuple(range(7, 12 + i))) for i in range(4)]
    engine = HFEngine(family)
    list(engine.score(requests, ARMS))
    together = engine.take_costs()
    for arm in ARMS:
        list(engine.score(requests, [arm]))
        assert together.arms[arm.name] == engine.take_costs().arms[arm.name]
    assert together.arms["proxy"].tokens == 5 + 6 + 7 + 8


def test_loading_is_taken_off_a_tasks_time_only_where_it_is_a_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(ledger.time, "perf_counter", lambda: now[0])
    noted = ledger.Ledger()

    def take(seconds: float) -> None:
        now[0] += seconds

    with noted.time("load_seconds", "before"):
        take(5.0)
    with noted.time("task_seconds", "before"):
        take(2.0)
    with noted.time("task_seconds", "within"):
        take(1.0)
        with noted.time("load_seconds", "within"):
            take(3.0)
    timings = noted.provenance(config=None, seed=0, limit=None, num_fewshot=None).timings
    assert timings.task_seconds == {"before": 2.0, "within": 1.0}
    assert timings.load_seconds == {"before": 5.0, "within": 3.0}


def test_bytes_read_are_the_weights_of_each_step_over_answers(family) -> None:
    clocks.copy_speed.cache_clear()  # a test may have measured it by a clock of its own
    engine = HFEngine(family, speculate="off")
    [(_, _, answer)] = engine.generate([GenerateRequest(Prompt((3, 4, 5)), 6)], ARMS[2:3])
    read = engine.take_costs().bandwidth
    step = 0
    for role in ("base", "antiexpert", "expert:math"):
        model = family[role].model
        step += sum(weight.nbytes for name, weight in model.named_parameters() if "embed" not in name)
    assert read.read == step * (len(answer.tokens) - 1)  # the first token follows the prompt
    assert read.seconds > 0 and read.copied is not None and read.copied > 0
    list(engine.score([ScoreRequest(Prompt((3, 4, 5)), (6,))], ARMS))
    assert engine.take_costs().bandwidth.read == 0


def test_weights_of_a_shared_module_count_once(family, adapter_family) -> None:
    def size(role: str) -> int:
        return sum(weight.numel() * weight.element_size() for weight in family[role].model.parameters())

    assert weight_bytes(family, ["base", "expert:math"]) == size("base") + size("expert:math")
    roles = list(adapter_family.members)
    shared = {id(adapter_family[role].model) for role in roles}
    assert len(shared) < len(roles)
    assert weight_bytes(adapter_family, roles) < sum(weight_bytes(adapter_family, [role]) for role in roles)


def test_a_stopped_clock_notes_nothing_and_reading_it_begins_anew() -> None:
    clock, cpu = Clock(), torch.device("cpu")
    with clock.time("a", cpu):
        pass
    assert clock.read() == {}
    clock.running = True
    for key in ("a", "b", "a"):
        with clock.time(key, cpu):
            pass
    assert clock.read().keys() == {"a", "b"} and clock.read() == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_time_of_a_gpu_is_that_of_its_work_not_of_the_call() -> None:
    clock, gpu = Clock(), torch.device("cuda")
    clock.running = True
    a = torch.randn(8192, 8192, device=gpu)
    a @ a
    torch.cuda.synchronize()
    with clock.time("one", gpu):
        a @ a
    with clock.time("ten", gpu):
        for _ in range(10):
            a @ a
    seconds = clock.read()
    assert seconds["ten"] > 5 * seconds["one"] > 0
