"""Weights chosen per token so that fusion moves the large model as far as tuning moved the small one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import ClassVar

import torch
from torch import Tensor

from proxytune.fusion.logits import add, batches, check_shapes, compare, shift
from proxytune.fusion.rule import Fused
from proxytune.fusion.solvers.joint import joint_search
from proxytune.fusion.solvers.search import best_alone, grid_search, line_search
from proxytune.fusion.solvers.tilt import Tilt

SOLVERS = ("exact", "grid")
EXPERTS = ("one_at_a_time", "joint")
MAX_STEPS = 10_000
"""Finer grids are refused: they gain nothing, and their points would not fit into memory."""
MAX_COMBINATIONS = 10_000
"""Joint grid searches larger than this are refused: they would take minutes per token."""
KERNEL_POINTS = 128
"""Larger grids are searched without the Triton kernel, which keeps the points in registers."""


@dataclass(frozen=True)
class MatchKL:
    """Dynamic logit fusion (Fan et al. 2024): base + sum_t alpha_t (expert_t - antiexpert), alpha chosen per position.

    With P, Q, Q_t the softmax of base, antiexpert, expert t, and P~ the fused distribution, alpha minimises

        L(alpha) = sum_t (KL(P~ || P) - KL(Q_t || Q))^2 + (KL(P || P~) - KL(Q || Q_t))^2

    over [low, high]. `solver="grid"` with `experts="one_at_a_time"` is the published algorithm: every multiple of
    `step` from `low` to `high`, both included, for one expert at a time with the others at 0; the first minimum wins.

    `solver="exact"` finds the best of the same points without evaluating all of them and then refines it to
    the continuous optimum nearby, using the derivatives of log sum P exp(alpha d). Its loss never exceeds the grid's,
    up to float32 rounding.

    `experts="joint"` optimises all weights together. L depends on the experts only through their two mean divergences,
    so with several experts many weights are equally good. `grid` takes the first of them in lexicographic order.
    `exact` descends from the best equal weights by steps of minimum norm, so equal experts get equal weights. If the
    result does not reach the mean divergences, it restarts from the best single expert and keeps that result if its
    loss is lower by more than 0.001 %. With one expert `joint` is identical to `one_at_a_time`.

    Ties: an expert that equals the antiexpert up to a constant changes nothing. Every weight is equally good, and it
    gets `low`.

    Masks: a token that the base masks with -inf stays masked. If an expert or the antiexpert masks a token, that
    pair carries no information about it: its difference counts as 0, and Q_t and Q are restricted to the tokens that
    both know. Mask with -inf, not with a large negative number. NaN or +inf in a row of any model makes the row's
    weights and fused logits NaN.

    On a GPU the exact search for one expert at a time is a single Triton kernel (`solvers/kernel.py`), which reaches
    the same loss up to rounding.

    On a CPU a row's result is bitwise independent of the other rows in its batch (not checked on other devices).
    """

    low: float = 0.0
    """Smallest weight."""
    high: float = 2.0
    """Largest weight."""
    solver: str = "exact"
    """"exact" (continuous optimum) or "grid" (the published search)."""
    step: float = 0.1
    """Spacing of the points, for both solvers; must divide high - low. No effect when low = high."""
    experts: str = "one_at_a_time"
    """"one_at_a_time" (at most one expert is active per position) or "joint"; no effect with one expert."""

    id: ClassVar[str] = "match_kl"
    formula: ClassVar[str] = (
        "base + sum_t a_t (expert_t - antiexpert), "
        "a = argmin sum_t (KL(P~||P) - KL(Q_t||Q))^2 + (KL(P||P~) - KL(Q||Q_t))^2"
    )
    paper: ClassVar[str] = "Fan et al. 2024 (arXiv 2406.15480)"

    def __post_init__(self) -> None:
        for name in ("low", "high", "step"):
            object.__setattr__(self, name, _number(name, getattr(self, name)))
        if self.low > self.high:
            raise ValueError(f"MatchKL.low must not exceed MatchKL.high, got low={self.low}, high={self.high}")
        if self.step <= 0:
            raise ValueError(f"MatchKL.step must be greater than 0, got {self.step}")
        steps = (self.high - self.low) / self.step
        if steps > MAX_STEPS:
            raise ValueError(
                f"MatchKL.step makes {steps:.3g} steps from low to high, of {MAX_STEPS} allowed: enlarge it"
            )
        if abs(steps - round(steps)) > 1e-6 * max(1.0, steps):
            raise ValueError(
                f"MatchKL.step must divide high - low = {self.high - self.low:g} into whole steps, got {self.step}"
            )
        for name, allowed in (("solver", SOLVERS), ("experts", EXPERTS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"MatchKL.{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")

    @cached_property
    def points(self) -> tuple[float, ...]:
        """The weights that `grid` tries, `low` and `high` included."""
        n = round((self.high - self.low) / self.step)
        return tuple((self.low * (n - i) + self.high * i) / n for i in range(n + 1)) if n else (self.low,)

    @torch.no_grad()
    def fuse(self, base: Tensor, experts: Tensor, antiexpert: Tensor) -> Fused:
        """Fused logits [..., V] and the chosen weights [T, ...]; no gradient flows through either.

        Raises ValueError for mismatched shapes, and for a joint grid of more than MAX_COMBINATIONS points.
        """
        check_shapes(base, experts, antiexpert)
        self._check_size(len(experts))
        kernel = self._kernel(base, len(experts))
        if kernel is not None:
            size = -1, base.shape[-1]
            several = experts.reshape(len(experts), *size)
            fused, chosen = kernel.fuse(base.reshape(size), several, antiexpert.reshape(size), self.points)
            return Fused(fused.view(base.shape), chosen.view(experts.shape[:-1]))
        logits = torch.empty(base.shape, dtype=torch.float32, device=base.device)
        weights = torch.empty(experts.shape[:-1], dtype=torch.float32, device=base.device)
        logits_NV, weights_TN = logits.view(-1, base.shape[-1]), weights.view(len(experts), -1)
        for rows, batch in _batches(base, experts, antiexpert):
            weights_TN[:, rows] = self._choose(batch)
            shift(batch.base, batch.d, weights_TN[:, rows], out=logits_NV[rows])
        return Fused(logits, weights)

    @torch.no_grad()
    def loss(self, base: Tensor, experts: Tensor, antiexpert: Tensor, weights: Tensor) -> Tensor:
        """L in nats squared, [...], at `weights` [T, ...]; logits as in `fuse`."""
        check_shapes(base, experts, antiexpert)
        if weights.shape != experts.shape[:-1]:
            raise ValueError(f"weights must be {list(experts.shape[:-1])} like the experts, got {list(weights.shape)}")
        loss = torch.empty(base.shape[:-1], dtype=torch.float32, device=base.device)
        loss_N, weights_TN = loss.view(-1), weights.float().reshape(len(experts), -1)
        for rows, batch in _batches(base, experts, antiexpert):
            w = weights_TN[:, rows]
            tilt = batch.tilt(float(w.abs().max()))
            loss_N[rows] = add((tilt.divergences(w)[:, None] - batch.targets(tilt)).square().flatten(0, 1))
        return loss

    def _choose(self, batch: _Batch) -> Tensor:
        """The weights [T, n] of a batch."""
        tilt = batch.tilt(max(abs(self.low), abs(self.high)))
        targets = batch.targets(tilt)
        points = torch.tensor(self.points, dtype=torch.float32, device=targets.device)
        if self.experts == "one_at_a_time" or len(tilt.d) == 1:
            weights = self._one_at_a_time(tilt, targets, points)
        else:
            weights = torch.where(tilt.flat, points[0], self._joint(tilt, targets, points))
        return weights.masked_fill((targets.sum((0, 1)) + tilt.psi0).isnan(), torch.nan)

    def _one_at_a_time(self, tilt: Tilt, targets: Tensor, points: Tensor) -> Tensor:
        """Weights [T, n], at most one of them nonzero per row."""
        experts = len(tilt.d)
        if self.solver == "grid":
            weights, losses = grid_search(tilt.lines(), targets.repeat(1, 1, experts), points)
        else:
            weights, losses = line_search(tilt.lines(), torch.cat([_mean(targets)] * experts, dim=1), points)
        return best_alone(weights, losses, experts)

    def _joint(self, tilt: Tilt, targets: Tensor, points: Tensor) -> Tensor:
        """Weights [T, n]."""
        if self.solver == "grid":
            return grid_search(tilt, targets, points)[0]
        return joint_search(tilt, _mean(targets), points)

    def _kernel(self, base: Tensor, experts: int) -> ModuleType | None:
        """The Triton kernel, if Triton is installed, the logits are on a GPU and the kernel implements this search."""
        one = self.experts == "one_at_a_time" or experts == 1
        has = self.solver == "exact" and one and 2 <= len(self.points) <= KERNEL_POINTS and base.numel() > 0
        if not has or base.device.type != "cuda" or find_spec("triton") is None:
            return None
        return import_module("proxytune.fusion.solvers.kernel")

    def _check_size(self, experts: int) -> None:
        combinations = len(self.points) ** experts
        if self.solver == "grid" and self.experts == "joint" and experts > 1 and combinations > MAX_COMBINATIONS:
            raise ValueError(
                f"MatchKL: a joint grid of {len(self.points)}^{experts} = {combinations} points is more than the "
                f"{MAX_COMBINATIONS} allowed: use solver=exact, experts=one_at_a_time or a larger step"
            )


class _Batch:
    """The logits of some rows in float32."""

    def __init__(self, base: Tensor, experts: Tensor, antiexpert: Tensor) -> None:
        self.base = base.float()
        self.d, self.antiexpert = compare(experts, antiexpert)

    def tilt(self, reach: float) -> Tilt:
        """The base shifted by the weighted differences."""
        return Tilt(self.base, self.d, reach)

    def targets(self, tilt: Tilt) -> Tensor:
        """[2, T, n]: KL(Q_t || Q) and KL(Q || Q_t); `tilt` is the base's.

        An expert is the antiexpert shifted by the expert's own difference.
        """
        lines = tilt.lines()
        antiexpert = self.antiexpert.expand_as(self.d).flatten(0, 1)
        small = Tilt(antiexpert, lines.d, 1.0, like=lines)
        return small.divergences(torch.ones_like(lines.psi0)[None]).view(2, len(self.d), -1)


def _batches(base: Tensor, experts: Tensor, antiexpert: Tensor) -> Iterator[tuple[slice, _Batch]]:
    base, antiexpert = base.reshape(-1, base.shape[-1]), antiexpert.reshape(-1, base.shape[-1])
    experts = experts.reshape(len(experts), *base.shape)
    for rows in batches(base, len(experts)):
        yield rows, _Batch(base[rows], experts[:, rows], antiexpert[rows])


def _mean(targets: Tensor) -> Tensor:
    """The mean over the experts: [2, n] from [2, T, n]."""
    first, *others = targets.unbind(1)
    return add((first, *others)) / targets.shape[1] if others else first


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"MatchKL.{name} must be a finite number, got {value!r}")
    return float(value)
