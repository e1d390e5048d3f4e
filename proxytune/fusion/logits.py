"""What every rule does with raw logits. Shapes: n rows, V tokens, T experts, `...` any rows and positions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import reduce

import torch
from torch import Tensor

BATCH, BATCH_ELSEWHERE = 2**21, 2**24
"""Logits searched together on a CPU and on other devices: enough to hide what a search costs beside its arithmetic,
few enough to fit into memory beside a model."""
CACHED = 2**17
"""Logits per CPU core worked on together: with what is computed from them they fit its cache."""


def check_shapes(base: Tensor, experts: Tensor, antiexpert: Tensor) -> None:
    """Raises ValueError unless `base` and `antiexpert` are [..., V] and `experts` is [T, ..., V] with T >= 1."""
    if base.ndim < 1 or antiexpert.shape != base.shape or experts.shape[1:] != base.shape or len(experts) < 1:
        raise ValueError(
            "logits must be base [..., V], experts [T, ..., V] with T >= 1 and antiexpert [..., V], "
            f"got {list(base.shape)}, {list(experts.shape)} and {list(antiexpert.shape)}"
        )


def batches(logits: Tensor, experts: int = 1) -> Iterator[slice]:
    """Cuts [n, V] into slices of rows to search together, each with the differences of so many experts."""
    return _slices(logits, (BATCH if logits.device.type == "cpu" else BATCH_ELSEWHERE) // experts)


def cached(logits: Tensor) -> Iterator[slice]:
    """Cuts [n, V] into slices of rows that stay in a CPU's cache; on other devices all rows are one slice."""
    return _slices(logits, CACHED * torch.get_num_threads() if logits.device.type == "cpu" else logits.numel())


def _slices(logits: Tensor, together: int) -> Iterator[slice]:
    rows = max(1, together // logits.shape[-1])
    return (slice(start, start + rows) for start in range(0, len(logits), rows))


def compare(expert: Tensor, antiexpert: Tensor) -> tuple[Tensor, Tensor]:
    """expert - antiexpert, and the antiexpert, over the tokens that both know; float32.

    Both are [..., V]; or the expert is [T, ..., V], and so is the antiexpert then where a token is masked. At tokens
    that either of them masks with -inf the difference is 0 and the antiexpert -inf.
    """
    antiexpert = antiexpert.float()
    d = expert.float() - antiexpert
    # Boolean masks cost more than all the rest, and most logits have no mask: then one sum says so. On a GPU the host
    # would wait for it.
    if d.device.type == "cpu" and math.isfinite(d.sum().item()):
        return d, antiexpert
    masked = torch.isneginf(expert) | torch.isneginf(antiexpert)
    return d.masked_fill(masked, 0.0), torch.where(masked, -torch.inf, antiexpert)


def add(terms: Iterable[Tensor]) -> Tensor:
    """The sum in the order of the terms. `x.sum(0)` of 5 and more has an order that depends on the other dimensions."""
    return reduce(torch.add, terms)


def shift(base: Tensor, differences: Iterable[Tensor], weights: Iterable[Tensor], out: Tensor) -> None:
    """out = base + sum_t weights_t differences_t: [n, V] from [n, V], T times [n, V] and T times [n]."""
    for d, weight in zip(differences, weights, strict=True):
        base = torch.addcmul(base, d, weight[:, None], out=out)
