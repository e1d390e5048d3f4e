"""All weights together. Shapes: n rows, T experts."""

from __future__ import annotations

import torch
from torch import Tensor

from proxytune.fusion.solvers.search import line_search
from proxytune.fusion.solvers.tilt import Tilt

MAX_STEPS = 60
SOLVED = 1e-9
"""A loss below this (divergences right to 3e-5 nats) counts as 0."""
CLEARLY = 1e-3
"""The share of the loss by which another start must be better to count: less is rounding."""
STALLED = 1e-5
"""A step that lowers the loss by a smaller share is the last."""
GIVE_UP = 1e4
"""Damping at which no step lowers the loss any more."""


def joint_search(tilt: Tilt, target: Tensor, points: Tensor) -> Tensor:
    """Weights [T, n] in [points[0], points[-1]] for `target` [2, n].

    Descends from the best equal weights and, where that does not reach the target, also from each expert's best weight
    alone; a later result counts only where it is clearly lower.
    """
    equal, _ = line_search(tilt.together(), target, points)
    w, loss = _descend(tilt, target, equal.expand(len(tilt.d), -1), points)
    for t in range(len(tilt.d)):
        rows = (loss > SOLVED).nonzero()[:, 0]
        if len(rows) == 0:
            break
        some, some_target = tilt.rows(rows), target[:, rows]
        start = torch.zeros_like(w[:, rows])
        start[t] = line_search(some.only(t), some_target, points)[0][0]
        other, other_loss = _descend(some, some_target, start.clamp(points[0], points[-1]), points)
        better = other_loss < (1 - CLEARLY) * loss[rows]
        w[:, rows] = torch.where(better, other, w[:, rows])
        loss[rows] = torch.where(better, other_loss, loss[rows])
    return w


def _descend(
    tilt: Tilt, target: Tensor, w: Tensor, points: Tensor, damping: float | Tensor = 1e-3, steps: int = MAX_STEPS
) -> tuple[Tensor, Tensor]:
    """Projected Levenberg-Marquardt from w [T, n]: every accepted step lowers the loss [n]."""
    value, jacobian = tilt.gradients(w)
    gap = value - target
    loss = gap.square().sum(0)
    damping = torch.as_tensor(damping, device=loss.device).expand_as(loss)
    for steps_left in reversed(range(steps)):
        active = (loss > SOLVED) & (damping < GIVE_UP)
        moving = int(active.sum())
        if moving == 0:
            break
        if 2 * moving <= len(loss):  # the others are done
            r = active.nonzero()[:, 0]
            w, loss = w.clone(), loss.clone()
            w[:, r], loss[r] = _descend(tilt.rows(r), target[:, r], w[:, r], points, damping[r], steps_left + 1)
            break
        trial = (w + _step(w, gap, jacobian, damping, points)).clamp(points[0], points[-1])
        trial_value, trial_jacobian = tilt.gradients(trial)
        trial_gap = trial_value - target
        trial_loss = trial_gap.square().sum(0)
        better = active & (trial_loss < loss)
        stalled = better & (loss - trial_loss < STALLED * loss)
        damping = torch.where(stalled, GIVE_UP, torch.where(better, damping / 10, damping * 10))
        w, loss, gap = (torch.where(better, a, b) for a, b in ((trial, w), (trial_loss, loss), (trial_gap, gap)))
        jacobian = torch.where(better, trial_jacobian, jacobian)
    return w, loss


def _step(w: Tensor, gap: Tensor, jacobian: Tensor, damping: Tensor, points: Tensor) -> Tensor:
    """The shortest damped Gauss-Newton step [T, n], -J'(JJ' + damping)^-1 gap, over weights not held by a bound."""
    gradient = (jacobian * gap[:, None]).sum(0)
    held = ((w <= points[0]) & (gradient > 0)) | ((w >= points[-1]) & (gradient < 0))
    j = jacobian.masked_fill(held, 0.0)
    (a, b), (_, c) = (j[:, None] * j).sum(2)  # JJ' = [[a, b], [b, c]] per row
    damped = damping * (a + c) + 1e-30
    a, c = a + damped, c + damped
    determinant = a * c - b * b
    solved = torch.stack([c * gap[0] - b * gap[1], a * gap[1] - b * gap[0]]) / determinant
    return -(j * solved[:, None]).sum(0)
