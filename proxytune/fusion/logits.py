"""Operations on raw logits that all rules share. Shapes: n rows, V tokens, T experts, `...` any batch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import reduce

import torch
from torch import Tensor

BATCH, BATCH_ELSEWHERE = 2**21, 2**24
"""The number of logits per search on a CPU and on other devices: large enough to hide the overhead of a search, small
enough to fit into memory next to a model."""
CACHED = 2**17
"""The number of logits per CPU core and slice: these and the intermediate results fit into the core's cache."""


def check_shapes(base: Tensor, experts: Tensor, antiexpert: Tensor) -> None:
    """Raises ValueError unless `base` and `antiexpert` are [..., V] and `experts` is [T, ..., V] with T >= 1."""
    if base.ndim < 1 or antiexpert.shape != base.shape or experts.shape[1:] != base.shape or len(experts) < 1:
        raise ValueError(
            "logits must be base [..., V], experts [T, ..., V] with T >= 1 and antiexpert [..., V], "
            f"got {list(base.shape)}, {list(experts.shape)} and {list(antiexpert.shape)}"
        )


def batches(logits: Tensor, experts: int = 1) -> Iterator[slice]:
    """Slices of the rows of `logits` [n, V], one per search; each row has the differences of `experts` experts."""
    return _slices(logits, (BATCH if logits.device.type == "cpu" else BATCH_ELSEWHERE) // experts)


def cached(logits: Tensor) -> Iterator[slice]:
    """Slices of the rows of `logits` [n, V] that fit into a CPU's cache; on other devices a single slice."""
    return _slices(logits, CACHED * torch.get_num_threads() if logits.device.type == "cpu" else logits.numel())


def _slices(logits: Tensor, together: int) -> Iterator[slice]:
    rows = max(1, together // logits.shape[-1])
    return (slice(start, start + rows) for start in range(0, len(logits), rows))


def compare(expert: Tensor, antiexpert: Tensor) -> tuple[Tensor, Tensor]:
    """(expert - antiexpert, antiexpert) over the tokens that both know; float32.

    Both arguments are [..., V], or the expert is [T, ..., V]; in that case the returned antiexpert is also [T, ..., V]
    if a token is masked. If either model masks a token with -inf, its difference is 0 and its antiexpert logit -inf.
    """
    antiexpert = antiexpert.float()
    d = expert.float() - antiexpert
    # Boolean masks cost more than the rest of this function, and most logits have no mask. On a CPU one sum detects
    # that. On a GPU this check would make the host wait.
    if d.device.type == "cpu" and math.isfinite(d.sum().item()):
        return d, antiexpert
    masked = torch.isneginf(expert) | torch.isneginf(antiexpert)
    return d.masked_fill(masked, 0.0), torch.where(masked, -torch.inf, antiexpert)


def add(terms: Iterable[Tensor]) -> Tensor:
    """The sum in the order of the terms. The order of `x.sum(0)` over 5 or more depends on the other dimensions."""
    return reduce(torch.add, terms)


def shift(base: Tensor, differences: Iterable[Tensor], weights: Iterable[Tensor], out: Tensor) -> None:
    """out = base + sum_t weights_t differences_t, with base and out [n, V], T differences [n, V] and T weights [n]."""
    for d, weight in zip(differences, weights, strict=True):
        base = torch.addcmul(base, d, weight[:, None], out=out)
