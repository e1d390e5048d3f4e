"""Searches for the weights whose divergences come nearest to a target. Shapes: n rows, T experts, G points."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from proxytune.fusion.logits import add
from proxytune.fusion.solvers.tilt import Tilt

CLOSE = 3e-3
"""A Newton step shorter than this is the last: convergence is quadratic, so about 1e-5 remains."""
NARROW = 64.0
"""Where d varies by less than this, in nats, a step shorter than CLOSE moves no two tokens apart by more than 0.2."""
BISECTED = 1e-6
"""A bisection shorter than this is the last, and any step where d is not NARROW."""
MAX_STEPS = 20
"""Enough to bisect a cell 0.1 wide down to BISECTED."""

State = TypeVar("State", bound=NamedTuple)
"""What a search knows of its rows: tensors [..., n], of which the first, [n], is True where a row is not done."""


def settle(step: Callable[[Tilt, Tensor, State], State], tilt: Tilt, target: Tensor, at: State, steps: int) -> State:
    """Repeats `at = step(tilt, target, at)` until all rows are done, at most `steps` times; `target` is [2, n].

    A row that is done stays as it is, so that it does not depend on the others. Once half of the rows are done, the
    others go on without them.
    """
    for left in reversed(range(steps)):
        active = at[0]
        count = int(active.sum())
        if count == 0:
            break
        if 2 * count <= len(active):
            r = active.nonzero()[:, 0]
            some = settle(step, tilt.rows(r), target[:, r], at._make(x[..., r] for x in at), left + 1)
            return at._make(x.index_copy(-1, r, y) for x, y in zip(at, some, strict=True))
        after = step(tilt, target, at)
        if count < len(active):
            after = at._make(torch.where(active, y, x) for x, y in zip(at, after, strict=True))
        at = after
    return at


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
        value = add((tilt.divergences(candidate)[:, None] - targets).square().flatten(0, 1))
        better = (value < loss) & ~(flat & loss.isfinite())
        loss, weights = torch.where(better, value, loss), torch.where(better, candidate, weights)
    return weights, loss


def line_search(tilt: Tilt, target: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """One expert: the continuous optimum over [points[0], points[-1]], never worse than the best of `points` [G].

    Finds the best point and polishes it between its neighbours. The loss can have several minima; the one beside the
    best point is the lowest, unless a narrower one hides between two points.

    Against trying all of 21 points (768 rows of `language_like` logits in scripts/benchmark_solver.py, 32,000 tokens):
    half the time, and the two divergences miss their targets by 0.018 nats in the median row instead of 0.035.

    `target` is [2, n]; returns weights [1, n] and loss [n].
    """
    w, loss = points[0].expand(target.shape[1]), torch.full_like(target[0], torch.inf)
    for side in _sides(points):
        start = _bracket(target, side, best_point(tilt, target, side))
        end = settle(_newton, tilt, target, start, MAX_STEPS)
        w, loss = torch.where(end.loss < loss, end.best, w), torch.minimum(end.loss, loss)
    return torch.where(tilt.flat, points[0], w), loss


def _sides(points: Tensor) -> list[Tensor]:
    """`points` [G] on each side of 0, by distance from it, 0 itself on both."""
    values = points.tolist()
    sides = [points[: sum(p <= 0 for p in values)].flip(0), points[sum(p < 0 for p in values) :]]
    return [side for side in sides if len(side) > 1] or [points]


class Known(NamedTuple):
    """What evaluating some of the points has shown."""

    active: Tensor  # [n]: any point can still win
    best: Tensor  # [n]: index of the best point evaluated
    loss: Tensor  # [n]: its loss
    guess: Tensor  # [n]: a weight where the minimum may be
    can_win: Tensor  # [G, n]: not evaluated, and may yet be the best
    lower: Tensor  # [2, G, n]: bounds on the divergences, equal where a point was evaluated
    upper: Tensor


def best_point(tilt: Tilt, target: Tensor, points: Tensor) -> Known:
    """The point of least loss among `points` [G], on one side of 0 and by distance from it, without evaluating all.

    Both divergences grow with |alpha|, so one evaluation bounds them at every other point, and thereby the loss
    from below. Each step evaluates, of the points that can still win, the one nearest to a guess: 3 to 5 of 21 in all.
    """
    n, zero = target.shape[1], (points == 0)[:, None]
    loss = torch.where(zero[0], target.square().sum(0), torch.inf)
    known = Known(
        active=loss > 0,
        best=torch.zeros(n, dtype=torch.long, device=points.device),
        loss=loss,
        guess=points[len(points) // 2].repeat(n),
        can_win=(~zero).repeat(1, n),
        lower=target.new_zeros(2, len(points), n),
        upper=torch.where(zero, 0.0, torch.inf).repeat(2, 1, n),
    )
    return settle(partial(_eliminate, points), tilt, target, known, len(points))


def _eliminate(points: Tensor, tilt: Tilt, target: Tensor, known: Known) -> Known:
    _, best, loss, guess, can_win, lower, upper = known
    look = torch.where(can_win, (points[:, None] - guess).abs(), torch.inf).argmin(0)
    w = points.index_select(0, look)
    value = tilt.divergences(w[None])
    here = (value - target).square().sum(0)
    better = here < loss
    # Near 0 both divergences grow with the square of alpha.
    scaled = w * (target.sum(0) / value.sum(0)).sqrt()
    loss = torch.minimum(loss, here)
    i, goal, value = torch.arange(len(points), device=points.device)[:, None], target[:, None], value[:, None]
    lower = torch.where(i < look, lower, lower.maximum(value))
    upper = torch.where(i > look, upper, upper.minimum(value))
    # A point that was evaluated is bounded by its own loss.
    can_win = (goal - goal.clamp(lower, upper)).square().sum(0) < loss
    best, guess = torch.where(better, look, best), torch.where(better & (scaled.abs() < torch.inf), scaled, guess)
    return Known(can_win.any(0), best, loss, guess, can_win, lower, upper)


class Bracket(NamedTuple):
    """A minimum between two weights; each [n]."""

    active: Tensor  # another step may come nearer to it
    w: Tensor  # where it may be
    low: Tensor
    high: Tensor
    best: Tensor  # the best weight so far
    loss: Tensor  # its loss


def _bracket(target: Tensor, points: Tensor, known: Known) -> Bracket:
    """The neighbours of the best point, and the likeliest weight between them."""
    best, inner, outer = known.best, (known.best - 1).clamp(min=0), (known.best + 1).clamp(max=len(points) - 1)
    # A neighbour that was not evaluated has the best point's value for its nearer bound, and draws nothing.
    w = points[best]
    for end, bounds in ((inner, known.upper), (outer, known.lower)):
        w = w + _towards(target, _at(known.lower, best), _at(bounds, end)) * (points[end] - points[best])
    ends = torch.stack([points[inner], points[outer]])
    return Bracket(torch.ones_like(w, dtype=torch.bool), w, ends.amin(0), ends.amax(0), points[best], known.loss)


def _at(values: Tensor, index: Tensor) -> Tensor:
    """values [2, G, n] at `index` [n]: [2, n]."""
    return values.gather(1, index.expand(2, 1, -1))[:, 0]


def _towards(target: Tensor, here: Tensor, there: Tensor) -> Tensor:
    """Which share [n] of the straight way from `here` to `there` comes nearest to the target; each [2, n]."""
    way = there - here
    return (((target - here) * way).sum(0) / way.square().sum(0)).nan_to_num(0.0).clamp(0, 1)


def _newton(tilt: Tilt, target: Tensor, at: Bracket) -> Bracket:
    """A step of Newton's method, safeguarded by bisection on the slope's sign.

    Only evaluated weights count, and last Newton steps where d is NARROW: there the loss is as foreseen.
    """
    value, first, second = tilt.line(at.w[None])
    gap = value - target
    loss = gap.square().sum(0)
    slope, curvature = (gap * first).sum(0), (first.square() + gap * second).sum(0)
    low, high = torch.where(slope < 0, at.w, at.low), torch.where(slope > 0, at.w, at.high)
    newton = at.w - slope / curvature
    safe = (curvature > 0) & (newton >= low) & (newton <= high)
    w = torch.where(safe, newton, (low + high) / 2)
    foreseen = safe & ((tilt.highest - tilt.lowest)[0] <= NARROW)
    active = (w - at.w).abs() >= torch.where(foreseen, CLOSE, BISECTED)
    foreseen &= ~active
    loss = torch.where(foreseen, loss - slope**2 / curvature, loss)
    best = torch.where(loss < at.loss, torch.where(foreseen, w, at.w), at.best)
    return Bracket(active, w, low, high, best, torch.minimum(loss, at.loss))
