"""The exact search for all weights together. Shapes: n rows, T experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from proxytune.fusion.solvers.search import Pair, Search, best_alone, line_search, run
from proxytune.fusion.solvers.tilt import Tilt

MAX_STEPS = 60
SOLVED = 1e-8
"""A loss below this (divergences accurate to 1e-4 nats) counts as 0."""
NEARLY = 1e-5
"""A loss above this (0.003 nats) is worth a restart."""
CLEARLY = 1e-5
"""The relative decrease of the loss that a restart must reach to be kept: less is rounding."""
STALLED = 1e-3
"""The search stops after a step whose relative decrease of the loss is smaller."""
DAMPING, GIVE_UP = 1e-3, 1e4
"""The damping of the first step, and the damping at which the search stops because no step lowers the loss."""


def joint_search(tilt: Tilt, target: Tensor, points: Tensor) -> Tensor:
    """Weights [T, n] in [points[0], points[-1]] for `target` [2, n].

    Descends from the best equal weights. A row that does not reach the target descends again from the best single
    expert; that result is used only if its loss is clearly lower. The start depends only on the row's own logits,
    never on the weights of the previous position: rules keep no history.

    With two experts (64 rows of `language_like` logits in scripts/benchmark_solver.py, 8,000 tokens) the divergences
    miss the target by 0.002 nats in the median row. One expert at a time misses it by 0.05, in a third of the time; all
    441 points of the joint grid by 0.04. If several weights are equally good, the choice among experts is arbitrary:
    in the miniature the joint weights score no better than one expert at a time.
    """
    low, high = points[0].item(), points[-1].item()
    equal = line_search(tilt.together(), target, points)[0].expand(len(tilt.d), -1)
    found = _descend(tilt, target, equal, low, high)
    rows = [row for row, (_, loss) in enumerate(found) if loss > NEARLY]
    if rows:
        index = torch.tensor(rows, device=target.device)
        some, goals = tilt.rows(index), target[:, index]
        others = _descend(some, goals, _start_alone(some, goals, points), low, high)
        for row, other in zip(rows, others, strict=True):
            found[row] = other if other[1] < (1 - CLEARLY) * found[row][1] else found[row]
    return torch.tensor([w for w, _ in found], dtype=torch.float32, device=target.device).T


def _start_alone(tilt: Tilt, target: Tensor, points: Tensor) -> Tensor:
    """Weights [T, n]: the best weight for the best expert, and the allowed weight nearest to 0 for the others."""
    experts = len(tilt.d)
    found = line_search(tilt.lines(), target.repeat(1, experts), points)
    return best_alone(*found, experts).clamp(points[0], points[-1])


End = tuple[Sequence[float], float]
"""Weights [T] and their loss."""


def _descend(tilt: Tilt, target: Tensor, starts: Tensor, low: float, high: float) -> list[End]:
    """Descends from `starts` [T, n]; the weights and the loss of each row."""
    goals = zip(target.T.tolist(), starts.T.tolist(), strict=True)
    return run([descend(goal, start, low, high) for goal, start in goals], tilt, Tilt.gradients)


class Iterate(NamedTuple):
    """Weights and the values computed there."""

    w: Sequence[float]
    loss: float
    gap: Pair
    """The divergences minus the target."""
    jacobian: Sequence[Pair]
    """[T] each, the derivatives of the two divergences."""


def descend(target: Pair, w: Sequence[float], low: float, high: float) -> Search[End]:
    """Projected Levenberg-Marquardt from `w` [T].

    It stops when the loss, and with it the fused distribution, has nearly stopped changing.
    """
    here, damping = _iterate(target, w, (yield w)), DAMPING
    for _ in range(MAX_STEPS):
        if not (here.loss > SOLVED and damping < GIVE_UP):
            break
        w = [min(max(x + step, low), high) for x, step in zip(here.w, _step(here, damping, low, high), strict=True)]
        there = _iterate(target, w, (yield w))
        before = here.loss
        here, damping = (there, damping / 10) if there.loss < before else (here, damping * 10)
        if (1 - STALLED) * before < there.loss < before:
            break
    return here.w, here.loss


def _iterate(target: Pair, w: Sequence[float], values: Sequence[float]) -> Iterate:
    gap = values[0] - target[0], values[1] - target[1]
    experts = len(w)
    jacobian = list(zip(values[2 : 2 + experts], values[2 + experts :], strict=True))
    return Iterate(w, gap[0] ** 2 + gap[1] ** 2, gap, jacobian)


def _step(at: Iterate, damping: float, low: float, high: float) -> list[float]:
    """The shortest damped Gauss-Newton step [T], -J'(JJ' + damping)^-1 gap, over the weights that are free to move."""
    (g0, g1), rows = at.gap, []
    for w, (x, y) in zip(at.w, at.jacobian, strict=True):
        slope = x * g0 + y * g1
        held = (w <= low and slope > 0) or (w >= high and slope < 0)
        rows.append((0.0, 0.0) if held else (x, y))
    # JJ' = [[a, b], [b, c]]
    a, b, c = (sum(row[i] * row[j] for row in rows) for i, j in ((0, 0), (0, 1), (1, 1)))
    damped = damping * (a + c) + 1e-30
    a, c = a + damped, c + damped
    determinant = a * c - b * b
    s0, s1 = (c * g0 - b * g1) / determinant, (a * g1 - b * g0) / determinant
    return [-(x * s0 + y * s1) for x, y in rows]
