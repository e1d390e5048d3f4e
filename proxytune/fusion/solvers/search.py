"""Searches for the weights whose divergences come nearest to a target. Shapes: n rows, T experts, G points."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from proxytune.fusion.solvers.tilt import Tilt

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
    known = best_point(tilt, target, points)
    best, inner, outer = known.best, (known.best - 1).clamp(min=0), (known.best + 1).clamp(max=len(points) - 1)
    # A neighbour that was not evaluated has the best point's value for its nearer bound, and draws nothing.
    start = points[best]
    for end, bounds in ((inner, known.upper), (outer, known.lower)):
        start = start + _towards(target, _at(known.lower, best), _at(bounds, end)) * (points[end] - points[best])
    ends = torch.stack([points[inner], points[outer]])
    w, loss = _polish(tilt, target, start, ends.amin(0), ends.amax(0))
    return torch.where(loss <= known.loss, w, points[best]), torch.minimum(loss, known.loss)


def _at(values: Tensor, index: Tensor) -> Tensor:
    """values [2, n, G] at `index` [n]: [2, n]."""
    return values.gather(2, index.expand(2, -1)[..., None])[..., 0]


def _towards(target: Tensor, here: Tensor, there: Tensor) -> Tensor:
    """Which share [n] of the straight way from `here` to `there` comes nearest to the target; each [2, n]."""
    way = there - here
    return (((target - here) * way).sum(0) / way.square().sum(0)).nan_to_num(0.0).clamp(0, 1)


class Known(NamedTuple):
    """What a search knows of n rows and G points."""

    best: Tensor
    """[n]: index of the best point evaluated."""
    loss: Tensor
    """[n]: its loss."""
    guess: Tensor
    """[n]: a weight where the minimum may be."""
    can_win: Tensor
    """[n, G]: whether a point was not evaluated and may yet be the best."""
    lower: Tensor
    """[2, n, G]: bounds on the divergences, equal where a point was evaluated."""
    upper: Tensor

    def rows(self, r: Tensor) -> Known:
        """Of some rows only."""
        return Known._make([*(x[r] for x in self[:4]), self.lower[:, r], self.upper[:, r]])

    def put(self, r: Tensor, some: Known) -> None:
        """What has become known of some rows."""
        for mine, theirs in zip(self[:4], some[:4], strict=True):
            mine[r] = theirs
        self.lower[:, r], self.upper[:, r] = some.lower, some.upper


def best_point(tilt: Tilt, target: Tensor, points: Tensor) -> Known:
    """The point of least loss among `points` [G], on one side of 0 and by distance from it, without evaluating all.

    Both divergences grow with |alpha|, so one evaluation bounds them at every other point, and thereby the loss
    from below. Each round evaluates, of the points that can still win, the one nearest to a guess: 3 to 5 of 21 in all.
    """
    n, zero = target.shape[1], points == 0
    known = Known(
        best=torch.zeros(n, dtype=torch.long, device=points.device),
        loss=torch.where(zero[0], target.square().sum(0), torch.inf),
        guess=points[len(points) // 2].repeat(n),
        can_win=(~zero).repeat(n, 1),
        lower=target.new_zeros(2, n, len(points)),
        upper=torch.where(zero, 0.0, torch.inf).repeat(2, n, 1),
    )
    return _eliminate(tilt, target, points, known)


def _eliminate(tilt: Tilt, target: Tensor, points: Tensor, known: Known) -> Known:
    """Evaluates points until none can win any more."""
    order = torch.arange(len(points), device=points.device)
    # From point i: the divergences at j are at least these times those at i, and at most those at i plus these.
    floor, ceiling = (order >= order[:, None]).float(), torch.where(order <= order[:, None], 0.0, torch.inf)
    while True:
        best, loss, guess, can_win, lower, upper = known
        bound = (target[..., None] - target[..., None].clamp(lower, upper)).square().sum(0)
        can_win &= bound < loss[:, None]
        searching = can_win.any(-1)
        left = int(searching.sum())
        if left == 0:
            return known
        if 2 * left <= len(best):  # the others are done
            r = searching.nonzero()[:, 0]
            known.put(r, _eliminate(tilt.rows(r), target[:, r], points, known.rows(r)))
            return known
        look = (points - guess[:, None]).abs().masked_fill_(~can_win, torch.inf).argmin(-1)
        # A row that is done looks at its best point again, so that it does not depend on its neighbours.
        look = torch.where(searching, look, best)
        can_win.scatter_(1, look[:, None], False)
        value = tilt.divergences(points[look][None])
        here = (value - target).square().sum(0)
        better = here < loss
        # Near 0 both divergences grow with the square of alpha.
        scaled = points[look] * (target.sum(0) / value.sum(0)).sqrt()
        known = Known(
            best=torch.where(better, look, best),
            loss=torch.minimum(loss, here),
            guess=torch.where(better & scaled.isfinite(), scaled, guess),
            can_win=can_win,
            lower=torch.maximum(lower, value[..., None] * floor[look]),
            upper=torch.minimum(upper, value[..., None] + ceiling[look]),
        )


def _polish(
    tilt: Tilt, target: Tensor, w: Tensor, low: Tensor, high: Tensor, steps: int = MAX_STEPS
) -> tuple[Tensor, Tensor]:
    """Newton's method from w to a minimum inside [low, high], all [n], safeguarded by bisection on the slope's sign.

    Returns the best weights found and their loss, [n]; of a last Newton step, the loss it foresees.
    """
    best, loss = w, torch.full_like(w, torch.inf)
    for steps_left in reversed(range(steps)):
        value, first, second = tilt.line(w[None])
        gap = value - target
        here = gap.square().sum(0)
        slope, curvature = (gap * first).sum(0), (first.square() + gap * second).sum(0)
        low, high = torch.where(slope < 0, w, low), torch.where(slope > 0, w, high)
        newton = w - slope / curvature
        safe = (curvature > 0) & (newton >= low) & (newton <= high)
        following = torch.where(safe, newton, (low + high) / 2)
        done = (following - w).abs() < torch.where(safe, CLOSE, BISECTED)
        w_now, here = torch.where(done, following, w), torch.where(done & safe, here - slope**2 / curvature, here)
        best, loss = torch.where(here < loss, w_now, best), torch.minimum(loss, here)
        # A row that is done stays where it is, so that it does not depend on its neighbours.
        w = torch.where(done, w, following)
        moving = len(w) - int(done.sum())
        if moving == 0:
            break
        if 2 * moving <= len(w):  # the others are done
            r = (~done).nonzero()[:, 0]
            other, other_loss = _polish(tilt.rows(r), target[:, r], w[r], low[r], high[r], steps_left)
            best[r] = torch.where(other_loss < loss[r], other, best[r])
            loss[r] = torch.minimum(loss[r], other_loss)
            break
    return best, loss
