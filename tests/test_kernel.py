"""MatchKL's Triton kernel against its search in PyTorch. Without a GPU by Triton's interpreter:

TRITON_INTERPRET=1 pytest tests/test_kernel.py
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from proxytune.fusion import MatchKL

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("without a GPU set TRITON_INTERPRET=1", allow_module_level=True)
kernel = import_module("proxytune.fusion.solvers.kernel")
CLOSE = 1e-4
"""How far a loss may be above that of the search in PyTorch: in nats squared, or of its size where that is large."""
Logits = tuple[Tensor, Tensor, Tensor]


def random(rows: int, vocabulary: int, experts: int = 1, scale: float = 3.0, seed: int = 0) -> Logits:
    generator = torch.Generator().manual_seed(seed)
    base, antiexpert = (scale * torch.randn(rows, vocabulary, generator=generator) for _ in range(2))
    change = (
        torch.randn(experts, rows, vocabulary, generator=generator)
        * torch.rand(experts, rows, 1, generator=generator)
        * 2
    )
    return base, antiexpert + change, antiexpert


def masked(logits: Logits, share: float = 0.2) -> Logits:
    """Each row of each model with tokens of its own masked; the last row of the base as a whole."""
    found = [
        x.masked_fill(torch.rand(x.shape, generator=torch.Generator().manual_seed(5)) < share, -torch.inf)
        for x in logits
    ]
    found[0][-1] = -torch.inf
    return found[0], found[1], found[2]


def extreme(rows: int, vocabulary: int) -> Logits:
    """Logits of +-1e4."""
    generator = torch.Generator().manual_seed(7)
    signs = (torch.randint(2, (3, rows, vocabulary), generator=generator) * 2 - 1) * 1e4
    return signs[0], signs[1][None], signs[2]


CASES = {
    "random": random(12, 810),
    "flat rows": random(6, 300, scale=0.1),
    "sharp rows": random(6, 300, scale=30.0),
    "longer than a block": random(3, 2500),
    "few tokens": random(4, 3),
    "masked": masked(random(8, 500)),
    "half large": (random(4, 200)[0], random(4, 200)[1] * 40, random(4, 200)[2] * 30),
    "extreme": extreme(4, 400),
    "several experts": random(6, 300, experts=3),
    "several experts, masked": masked(random(6, 300, experts=2)),
}
RULES = {
    "default": MatchKL(),
    "both sides": MatchKL(low=-1.0, high=3.0, step=0.5),
    "negative": MatchKL(low=-2.0, high=-0.5, step=0.25),
    "two points": MatchKL(low=0.0, high=1.5, step=1.5),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rule", RULES)
def test_the_loss_is_not_above_that_of_the_search_in_pytorch(case, rule):
    logits, rule = CASES[case], RULES[rule]
    expected = rule.fuse(*logits)
    fused, weights = kernel.fuse(*(x.to(DEVICE) for x in logits), rule.points)
    fused, weights = fused.cpu(), weights.cpu()
    assert (weights != 0).sum(0).max() <= 1 or len(logits[1]) == 1
    assert ((weights == 0) | ((weights >= rule.low) & (weights <= rule.high))).all()
    loss, reference = rule.loss(*logits, weights), rule.loss(*logits, expected.weights)
    assert (loss - reference <= CLOSE * reference.clamp(min=1.0)).all()
    torch.testing.assert_close(fused, moved(*logits, weights), atol=1e-3, rtol=1e-5)


def moved(base: Tensor, experts: Tensor, antiexpert: Tensor, weights: Tensor) -> Tensor:
    for expert, weight in zip(experts, weights, strict=True):
        known = expert.isfinite() & antiexpert.isfinite()
        base = base + weight[:, None] * torch.where(known, expert - antiexpert, 0.0)
    return base


@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
def test_an_expert_that_changes_nothing_gets_the_lowest_weight(rule):
    base, _, antiexpert = random(3, 100)
    for expert in (antiexpert, antiexpert + 2.0):
        fused, weights = kernel.fuse(*(x.to(DEVICE) for x in (base, expert[None], antiexpert)), rule.points)
        assert (weights == rule.low).all()
        torch.testing.assert_close(fused.cpu().softmax(-1), base.softmax(-1))


@pytest.mark.parametrize("experts", [1, 2])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("model", range(3))
def test_nan_and_infinity_make_their_row_nan_and_no_other(bad, model, experts):
    logits = random(3, 100, experts)
    expected = MatchKL().fuse(*logits)
    logits[model][..., 1, 7] = bad
    fused, weights = (x.cpu() for x in kernel.fuse(*(x.to(DEVICE) for x in logits), MatchKL().points))
    assert fused[1].isnan().all() and weights[:, 1].isnan().all()
    torch.testing.assert_close(weights[:, [0, 2]], expected.weights[:, [0, 2]], atol=2e-3, rtol=0)
    assert fused[[0, 2]].isfinite().all()


def test_rows_of_16_bits_and_with_gaps_between_them_are_read():
    base, experts, antiexpert = (x.to(torch.bfloat16) for x in random(4, 120))
    expected = MatchKL().fuse(base[:, :100], experts[..., :100], antiexpert[:, :100])
    given = (x.to(DEVICE)[..., :100] for x in (base, experts, antiexpert))
    _, weights = kernel.fuse(*given, MatchKL().points)
    torch.testing.assert_close(weights.cpu(), expected.weights, atol=2e-3, rtol=0)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_large_vocabularies_on_a_gpu():
    for rows, vocabulary in ((64, 32_000), (16, 151_936)):
        logits = random(rows, vocabulary)
        on_gpu = [x.cuda() for x in logits]
        fused, reference = MatchKL().fuse(*on_gpu), MatchKL().fuse(*logits)
        above = MatchKL().loss(*logits, fused.weights.cpu()) - MatchKL().loss(*logits, reference.weights)
        assert above.max() <= CLOSE
