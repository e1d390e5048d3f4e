"""Scoring: every arm's log-probabilities are those of plain forward passes over one request."""

import engine_reference as reference
import pytest
import torch
from test_engine_generate import ARMS, counting

from proxytune.engines.hf import HFEngine, score
from proxytune.engines.requests import GenerateRequest, Prompt, ScoreRequest
from proxytune.fusion import MatchKL, Static
from proxytune.fusion.arm import Arm

LONG = tuple(range(40, 90, 3))
REQUESTS = [
    ScoreRequest(Prompt((5, 9, 200, 31, 77)), (8, 3, 90)),
    ScoreRequest(Prompt((101, 44)), (17,)),
    ScoreRequest(Prompt((5, 9, 200, 31, 77)), (61,)),
    ScoreRequest(Prompt((1,)), LONG),
    ScoreRequest(Prompt((101, 44)), (17, 17)),
    ScoreRequest(Prompt((5, 9, 200, 31, 77)), (8, 3, 91, 12, 13)),
    ScoreRequest(Prompt((9, 9)), ()),
]


def answers(ensemble, requests, arms, batch_size=None):
    """{(request index, arm name): Scored}"""
    found = {(index, name): scored for index, name, scored in HFEngine(ensemble, batch_size).score(requests, arms)}
    assert len(found) == len(requests) * len(arms)
    return found


def tolerance(arm):
    """A weight that is searched for is as exact as the flat bottom of its loss, and differences are tens of units."""
    return {"atol": 2e-2, "rtol": 1e-3} if isinstance(arm.rule, MatchKL) else {"atol": 1e-5, "rtol": 1e-5}


def assert_as_reference(ensemble, requests, arms, found):
    for index, request in enumerate(requests):
        for arm in arms:
            logprobs, greedy, weights = reference.score(ensemble, arm, request)
            got = found[index, arm.name]
            torch.testing.assert_close(torch.tensor(got.logprobs), logprobs, **tolerance(arm))
            assert list(got.greedy) == greedy
            torch.testing.assert_close(
                torch.tensor(got.weights).reshape(weights.shape), weights.float(), atol=2e-3, rtol=1e-3
            )


@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_all_arms_equal_the_reference(family, batch_size):
    assert_as_reference(family, REQUESTS, ARMS, answers(family, REQUESTS, ARMS, batch_size))


def test_experts_that_are_adapters_of_one_module_equal_the_reference(adapter_family):
    assert_as_reference(adapter_family, REQUESTS, ARMS, answers(adapter_family, REQUESTS, ARMS))


def test_a_member_may_read_a_prompt_of_its_own(family):
    requests = [
        ScoreRequest(Prompt(r.prompt.tokens, {"expert:trivia": (90, 91, *r.prompt.tokens)}), r.continuation)
        for r in REQUESTS
    ]
    assert_as_reference(family, requests, ARMS, answers(family, requests, ARMS))


def test_long_continuations_are_read_in_slices_with_the_same_result(family, monkeypatch):
    whole = answers(family, REQUESTS, ARMS)
    monkeypatch.setattr(score, "SLICE", 7 * family.vocab_size)
    monkeypatch.setattr(score, "CHUNK", 2 * family.vocab_size)
    ensemble, rows = counting(family)
    sliced = answers(ensemble, REQUESTS, ARMS)
    left, read = (
        [len(request.continuation) - 1 for request in REQUESTS if len(request.continuation) > 1],
        [4],
    )  # prompts
    while left:
        read.append(len(left))
        left = [tokens - max(1, 7 // len(left)) for tokens in left if tokens > max(1, 7 // len(left))]
    assert rows["base"] == read
    for arm in ARMS:
        for key in ((index, arm.name) for index in range(len(REQUESTS))):
            ours, theirs = torch.tensor(sliced[key].logprobs), torch.tensor(whole[key].logprobs)
            torch.testing.assert_close(ours, theirs, **tolerance(arm))
            assert sliced[key].greedy == whole[key].greedy


def test_greedy_continuations_are_greedy(family):
    prompt = Prompt((5, 9, 200, 31, 77))
    for _, name, generated in HFEngine(family).generate([GenerateRequest(prompt, 8)], ARMS):
        scored = answers(family, [ScoreRequest(prompt, generated.tokens)], ARMS)[0, name]
        assert all(scored.greedy)


def test_each_member_runs_once_for_all_arms_and_a_shared_prompt_is_read_once(family):
    ensemble, rows = counting(family)
    choices = [ScoreRequest(Prompt((5, 9, 200)), (token,)) for token in (8, 20, 30, 40)]
    sweep = [Arm(f"alpha {a}", rule=Static(a / 10), experts=("expert:math",)) for a in range(21)]
    answers(ensemble, choices, sweep)
    assert rows["base"] == rows["antiexpert"] == rows["expert:math"] == [1]
    rows["base"].clear()
    answers(ensemble, [*choices, ScoreRequest(Prompt((5, 9, 200)), (8, 3))], [*sweep, *ARMS])
    assert rows["base"] == [1, 1]


def test_a_masked_token_has_logprob_minus_infinity(family):
    class Masked:
        id, formula, paper = "masked", "base, some tokens masked", "none"

        def fuse(self, base, experts, antiexpert):
            masked = base.clone()
            masked[..., 8] = -torch.inf
            return Static(1.0).fuse(masked, experts, antiexpert)

    arm = Arm("masked", rule=Masked(), experts=("expert:math",))
    found = answers(family, [ScoreRequest(Prompt((5, 9)), (8, 3))], [arm])[0, "masked"]
    assert found.logprobs[0] == -float("inf")
    assert -100 < found.logprobs[1] < 0
