"""Searches for the weights whose divergences come nearest to a target. Shapes: n rows, T experts, G points."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from proxytune.fusion.tilt import Tilt

CLOSE = 3e-3
"""A Newton step shorter than this is the last: convergence is quadratic, so about 1e-5 remains."""
BISECTED = 1e-6
"""A bisection shorter than this is the last."""
MAX_STEPS = 20
"""Enough to bisect a cell 0.1 wide down to BISECTED."""


def grid_search(tilt: Tilt, targets: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Tries every combination of `points` [G], one per expert of `tilt`; the first minimum wins.

    `targets` is [2, S, n]; the loss is the squared distance of the divergences from them, summed over S.
    Returns weights [T, n] and loss [n].
    """
    n = targets.shape[-1]
    loss = targets.new_full((n,), torch.inf)
    weights = points[0].expand(len(tilt.d), n)
    flat = tilt.flat.all(0)
    for combination in product(points, repeat=len(tilt.d)):
        candidate = torch.stack(combination)[:, None].expand_as(weights)
        value = (tilt.divergences(candidate)[:, None] - targets).square().sum((0, 1))
        better = (value < loss) & ~(flat & loss.isfinite())
        loss, weights = torch.where(better, value, loss), torch.where(better, candidate, weights)
    return weights, loss


def line_search(tilt: Tilt, target: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """One expert: the continuous optimum over [points[0], points[-1]], never worse than the best of `points` [G].

    Finds the best point and polishes it between its neighbours. The loss can have several minima; the one beside the
    best point is the lowest, unless a narrower one hides between two points.

    `target` is [2, n]; returns weights [1, n] and loss [n].
    """
    sides = [side for side in (points[points <= 0].flip(0), points[points >= 0]) if len(side) > 1] or [points]
    results = [_search_side(tilt, target, side) for side in sides]
    w, loss = results[0]
    for other, other_loss in results[1:]:
        w, loss = torch.where(other_loss < loss, other, w), torch.minimum(other_loss, loss)
    return torch.where(tilt.flat, points[0], w), loss


def _search_side(tilt: Tilt, target: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """`line_search` among points on one side of 0, by distance from it; returns weights and loss, [n]."""
    best, loss, bound = best_point(tilt, target, points)
    beside = best[:, None] + torch.arange(-1, 2, device=best.device)
    inside = beside.clamp(0, len(points) - 1)
    low, point, high = points[inside].unbind(1)
    before, here, after = bound.gather(1, inside).masked_fill(beside != inside, torch.inf).unbind(1)
    # Start from the vertex of the parabola through the three losses, or where it is unknown from the point.
    bend = before - 2 * here + after
    vertex = torch.where(bend.isfinite() & (bend > 0), (before - after) / (2 * bend), 0.0)
    start = point + vertex * (high - low) / 2
    w, polished = _polish(tilt, target, start, torch.minimum(low, high), torch.maximum(low, high))
    return torch.where(polished <= loss, w, point), torch.minimum(polished, loss)


def best_point(tilt: Tilt, target: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The point of least loss among `points` [G], on one side of 0 and by distance from it, without evaluating all.

    Both divergences grow with |alpha|, so one evaluation bounds them at every other point, and thereby the loss
    from below. Each round evaluates the middle one of the points that can still win: about 5 of 21 in all.

    Returns the index of the point [n], its loss [n], and lower bounds on all losses [n, G].
    """
    order = torch.arange(len(points), device=points.device)
    # From point i: the divergences at j are at least these times those at i, and at most those at i plus these.
    floor, ceiling = (order >= order[:, None]).float(), torch.where(order <= order[:, None], 0.0, torch.inf)
    lower = target.new_zeros(*target.shape, len(points))
    upper = torch.where(points == 0, 0.0, torch.inf).expand_as(lower)
    target = target[..., None]
    best = torch.zeros_like(target[0, :, 0], dtype=torch.long)
    loss = torch.where(points[0] == 0, target.square().sum(0), torch.inf)
    can_win = torch.ones_like(lower[0], dtype=torch.bool)
    while True:
        bound = (target - target.clamp(lower, upper)).square().sum(0)
        can_win &= bound < loss
        rank = can_win.cumsum(-1)
        half = (rank[:, -1] + 1) // 2
        if half.max() == 0:
            return best, loss[:, 0], bound
        # A row that is done looks at its best point again, so that it does not depend on its neighbours.
        look = torch.where(half > 0, torch.searchsorted(rank, half[:, None])[:, 0], best)
        can_win.scatter_(1, look[:, None], False)
        value = tilt.divergences(points[look][None])[..., None]
        lower = torch.maximum(lower, value * floor[look])
        upper = torch.minimum(upper, value + ceiling[look])
        here = (value - target).square().sum(0)
        best = torch.where((here < loss)[:, 0], look, best)
        loss = torch.minimum(loss, here)


def _polish(tilt: Tilt, target: Tensor, w: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Newton's method from w to a minimum inside [low, high], all [n], safeguarded by bisection on the slope's sign.

    Returns the best weights seen and their loss, [n].
    """
    best, loss = w, torch.full_like(w, torch.inf)
    for _ in range(MAX_STEPS):
        value, first, second = tilt.line(w[None])
        gap = value - target
        here = gap.square().sum(0)
        slope, curvature = (gap * first).sum(0), (first.square() + gap * second).sum(0)
        low, high = torch.where(slope < 0, w, low), torch.where(slope > 0, w, high)
        newton = w - slope / curvature
        safe = (curvature > 0) & (newton >= low) & (newton <= high)
        following = torch.where(safe, newton, (low + high) / 2)
        done = (following - w).abs() < torch.where(safe, CLOSE, BISECTED)
        best = torch.where(here < loss, torch.where(done, following, w), best)
        loss = torch.minimum(loss, here)
        if done.all():
            break
        # A row that is done stays where it is, so that it does not depend on its neighbours.
        w = torch.where(done, w, following)
    return best, loss
