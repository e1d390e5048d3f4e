"""How many requests are about a minute's work: counted in parameters and tokens, by hand here."""

import pytest

from proxytune.engines.hf import HFEngine, work
from proxytune.engines.requests import GenerateRequest, Prompt, ScoreRequest
from proxytune.fusion import Static
from proxytune.fusion.arm import Arm

BASE = Arm("base", base="base")
PROXY = Arm("proxy", rule=Static(1.0), experts=("expert:math",))
GENERATE = [GenerateRequest(Prompt((5, 6, i)), max_new_tokens=7) for i in range(20)]


def parameters(family, *roles: str) -> int:
    return sum(weight.numel() for role in roles for weight in family[role].model.parameters())


@pytest.fixture
def seconds(family, monkeypatch):
    """The time that three requests of GENERATE take with both arms, at two parameters times tokens a second."""
    base, others = parameters(family, "base"), parameters(family, "expert:math", "antiexpert")
    # The base answers for two arms, which may choose different tokens; the others for one.
    one = base * (3 + 2 * 7) + others * (3 + 7)
    monkeypatch.setattr(work, "CPU", 2.0)
    monkeypatch.setattr(work, "SECONDS", 3.0 * one / 2)
    return one


def test_as_many_requests_as_fit_the_time(family, seconds):
    assert HFEngine(family, batch_size=2).portion(GENERATE, [BASE, PROXY]) == 3
    assert HFEngine(family, batch_size=2).portion(GENERATE[:2], [BASE, PROXY]) == 2


def test_never_fewer_than_fill_a_batch(family, seconds):
    assert HFEngine(family, batch_size=10).portion(GENERATE, [BASE, PROXY]) == 5
    assert HFEngine(family).portion(GENERATE, [BASE, PROXY]) == 16


def test_choices_of_one_prompt_read_it_once_for_all_arms(family, monkeypatch):
    prompts = [Prompt((5, 6, 7)), Prompt((5, 6, 8))]
    requests = [ScoreRequest(prompt, (9, i)) for prompt in prompts for i in range(4)]
    size = parameters(family, "base", "expert:math", "antiexpert")
    monkeypatch.setattr(work, "CPU", 1.0)
    monkeypatch.setattr(work, "SECONDS", float(size * ((3 + 4 * 2) + (3 + 2))))
    assert HFEngine(family, batch_size=2).portion(requests, [BASE, PROXY]) == 5
