"""Groups, memory, progress, and what is refused before any model runs."""

import logging
from dataclasses import replace

import pytest
import torch
from test_engine_generate import ARMS, GREEDY, SAMPLED, counting
from test_engine_score import REQUESTS

from proxytune.engines.hf import HFEngine
from proxytune.engines.hf.batching import is_out_of_memory
from proxytune.engines.requests import GenerateRequest, Prompt, ScoreRequest
from proxytune.errors import UserError
from proxytune.fusion import Static
from proxytune.fusion.arm import Arm
from proxytune.models.ensemble import Ensemble
from proxytune.models.member import Member


class Small(Member):
    """Has no memory for more than `room` rows."""

    def read(self, state, tokens, mask=None, keep=1):
        if tokens.shape[0] > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().read(state, tokens, mask, keep)


def small(family, room: int) -> Ensemble:
    member = Small(**vars(family["base"]))
    object.__setattr__(member, "room", room)
    return Ensemble({**family.members, "base": member}, family.tokenizer)


def run(engine, requests, arms):
    call = engine.generate if isinstance(requests[0], GenerateRequest) else engine.score
    found = [((index, name), answer) for index, name, answer in call(requests, arms)]
    assert len(dict(found)) == len(found) == len(requests) * len(arms)
    return dict(found)


@pytest.mark.parametrize("requests", [GREEDY, SAMPLED, REQUESTS], ids=["greedy", "sampled", "score"])
@pytest.mark.parametrize("room", [5, 4])
def test_out_of_memory_halves_the_batch_and_loses_nothing(family, requests, room, caplog):
    """Five prompts fit at first; when arms split into more rows than there is room for, some arms have answered."""
    arms = [Arm("base"), *ARMS[2:5]]
    engine = HFEngine(small(family, room), batch_size=8)
    if requests is REQUESTS:
        engine.ensemble["base"].__dict__["room"] = 2
    with caplog.at_level(logging.WARNING):
        found = run(engine, requests, arms)
    assert engine.batch_size < 8
    assert f"continuing with {engine.batch_size}" in caplog.text
    whole = run(HFEngine(family), requests, arms)
    for key, answer in whole.items():
        if isinstance(requests[0], GenerateRequest):
            assert (found[key].tokens, found[key].text, found[key].finish) == (
                answer.tokens,
                answer.text,
                answer.finish,
            )
        else:
            assert found[key].greedy == answer.greedy
            assert found[key].logprobs == pytest.approx(answer.logprobs, abs=2e-4)
    tried = caplog.text.count("out of memory")
    run(engine, requests, arms)
    assert caplog.text.count("out of memory") == tried, "the smaller size is remembered"


def test_out_of_memory_with_one_request_is_said_in_one_line(family):
    with pytest.raises(UserError, match="out of memory with one request"):
        run(HFEngine(small(family, 0)), GREEDY, ARMS)


def test_the_processors_own_out_of_memory_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55, dtype=torch.int8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_other_errors_are_not_swallowed(family):
    class Broken(Member):
        def read(self, state, tokens, mask=None, keep=1):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    ensemble = Ensemble({**family.members, "base": Broken(**vars(family["base"]))}, family.tokenizer)
    with pytest.raises(RuntimeError, match="mat1"):
        run(HFEngine(ensemble), GREEDY, ARMS)


@pytest.mark.parametrize("requests", [GREEDY, REQUESTS], ids=["generate", "score"])
def test_progress_counts_finished_requests_and_answers_keep_their_order(family, requests):
    counts: list[int] = []
    engine = HFEngine(family, 2)
    call = engine.generate if requests is GREEDY else engine.score
    order = [(index, name) for index, name, _ in call(requests, ARMS, progress=counts.append)]
    assert sum(counts) == len(requests)
    assert order == [(index, name) for index, name, _ in call(requests, ARMS)]


def test_no_requests_is_no_answers(family):
    assert list(HFEngine(family).generate([], ARMS)) == []
    assert list(HFEngine(family).score([], ARMS)) == []


LONG = tuple(range(5, 155))
WRONG = [
    (GenerateRequest(Prompt(()), 4), "request 1: empty prompt for base"),
    (GenerateRequest(Prompt((5,), {"expert:trivia": ()}), 4), "request 1: empty prompt for expert:trivia"),
    (
        GenerateRequest(Prompt(LONG), 108),
        r"request 1: base reads at most 256 tokens and would need 257 \(150 of prompt",
    ),
    (
        GenerateRequest(Prompt((5,), {"expert:trivia": LONG + LONG}), 4),
        "request 1: expert:trivia reads at most 256 tokens",
    ),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_what_cannot_be_read_is_refused_before_any_model_runs(family, wrong, message):
    ensemble, rows = counting(family)
    with pytest.raises(UserError, match=message):
        HFEngine(ensemble).generate([GREEDY[0], wrong], ARMS)
    with pytest.raises(UserError, match="request 1"):
        scored = ScoreRequest(wrong.prompt, tuple(range(wrong.max_new_tokens)))
        HFEngine(ensemble).score([REQUESTS[0], scored], ARMS)
    assert not any(rows.values())


def test_the_smallest_window_counts_and_may_be_filled(family):
    fits = [GenerateRequest(Prompt(LONG), 107)]
    arm = Arm("expert", base="expert:trivia")
    assert len(run(HFEngine(family), fits, [arm])[0, "expert"].tokens) <= 107
    short = family["antiexpert"].model.config
    member = replace(family["antiexpert"], model=family["antiexpert"].model)
    window, short.max_position_embeddings = short.max_position_embeddings, 100
    try:
        ensemble = Ensemble({**family.members, "antiexpert": member}, family.tokenizer)
        assert run(HFEngine(ensemble), fits, [Arm("base")])
        with pytest.raises(UserError, match="antiexpert reads at most 100 tokens"):
            HFEngine(ensemble).generate(fits, ARMS)
    finally:
        short.max_position_embeddings = window


def test_arms_need_names_of_their_own_and_known_roles(family):
    engine = HFEngine(family)
    with pytest.raises(UserError, match="two arms are called 'base'"):
        engine.generate(GREEDY, [Arm("base"), Arm("base", base="antiexpert")])
    with pytest.raises(UserError, match="Did you mean 'expert:math'"):
        engine.score(REQUESTS, [Arm("typo", rule=Static(1.0), experts=("expert:maths",))])
    with pytest.raises(UserError, match="no arms"):
        engine.score(REQUESTS, [])


@pytest.mark.parametrize("size", [0, -3])
def test_a_batch_size_below_one_is_refused(family, size):
    with pytest.raises(UserError, match="batch_size"):
        HFEngine(family, size)
