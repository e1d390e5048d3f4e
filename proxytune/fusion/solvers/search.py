"""Searches for the weights whose divergences are closest to a target. Shapes: n rows, T experts, G points."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Generator, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from proxytune.fusion.logits import add
from proxytune.fusion.solvers.tilt import Tilt

CLOSE = 3e-3
"""The search ends after a shorter Newton step: convergence is quadratic, so an error of about 1e-5 remains."""
NARROW = 64.0
"""If d varies by less than this, in nats, a step shorter than CLOSE changes no log-odds by more than 0.2."""
BISECTED = 1e-6
"""The search ends after a bisection shorter than this, or, where d is not NARROW, after any step shorter than this."""
ROUNDING = 1e-5
"""The rounding error of divergences, in nats: a last step that moves at most this much away from the target is kept."""
TOGETHER = 2**15
"""Below this number of logits, calls cost more than their arithmetic, so one call evaluates several points as rows."""
MAX_STEPS = 20
"""Enough to bisect an interval of length 0.1 down to BISECTED."""

Found = TypeVar("Found")
Pair = tuple[float, float]
"""KL(P~ || P) and KL(P || P~)."""
Search = Generator[Sequence[float], Sequence[float], Found]
"""The search of one row: it yields weights [T], is sent the values there, and finally returns its result.

It computes with Python floats: for the few rows of a decoding step a tensor operation costs more than its arithmetic.
"""


def run(searches: Sequence[Search[Found]], tilt: Tilt, evaluate: Callable[[Tilt, Tensor], Tensor]) -> list[Found]:
    """The result of each row's search; `evaluate(tilt, w [T, n])` gives the values [M, n] that the searches are sent.

    Unfinished rows are evaluated together. Whenever half of the rows are finished, they are dropped from the batch.
    """
    found: dict[int, Found] = {}
    asked: dict[int, Sequence[float]] = {}

    def proceed(row: int, values: Sequence[float] | None) -> None:
        try:
            asked[row] = searches[row].send(values)  # type: ignore[arg-type]
        except StopIteration as end:
            found[row] = end.value
            asked.pop(row, None)

    for row in range(len(searches)):
        proceed(row, None)
    held, idle = list(range(len(searches))), [0.0] * len(tilt.d)
    while asked:
        if 2 * len(asked) <= len(held):
            places = [place for place, row in enumerate(held) if row in asked]
            tilt, held = tilt.rows(torch.tensor(places, device=tilt.d.device)), list(asked)
        w = torch.tensor([asked.get(row, idle) for row in held], dtype=torch.float32, device=tilt.d.device)
        for row, values in zip(held, evaluate(tilt, w.T).T.tolist(), strict=True):
            if row in asked:
                proceed(row, values)
    return [found[row] for row in range(len(searches))]


def grid_search(tilt: Tilt, targets: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Tries every combination of `points` [G], one per expert of `tilt`; the first minimum wins.

    `targets` is [2, S, n]; the loss is the squared distance of the divergences from them, summed over S.
    Returns weights [T, n] and loss [n].
    """
    experts, n = len(tilt.d), targets.shape[-1]
    combinations = torch.cartesian_prod(*[points] * experts).view(-1, experts)
    weights, loss = combinations[:1].T.expand(-1, n), targets.new_full((n,), torch.inf)
    for some in combinations.split(max(1, TOGETHER // tilt.log_p.numel())):
        repeated = tilt.rows(torch.arange(n, device=points.device).repeat(len(some)))
        value = repeated.divergences(some.T.repeat_interleave(n, dim=1)).view(2, 1, len(some), n)
        losses = add((value - targets[:, :, None]).square().flatten(0, 1))
        lowest, best = losses.masked_fill(losses.isnan(), torch.inf).min(0)
        weights = torch.where(lowest < loss, some[best].T, weights)
        loss = torch.minimum(lowest, loss)
    return torch.where(tilt.flat.all(0), points[0], weights), loss


def line_search(tilt: Tilt, target: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """For one expert: the continuous optimum over [points[0], points[-1]], never worse than the best of `points` [G].

    Finds the best point and refines it between its neighbours. The loss can have several minima. The one next to the
    best point is the lowest, unless a narrower one lies between two points.

    Compared with trying all of 21 points, it takes half the time, and the two divergences miss their targets by 0.018
    nats in the median row instead of 0.035 (768 rows of `language_like` logits in scripts/benchmark_solver.py, 32,000
    tokens).

    `target` is [2, n]; returns weights [1, n] and loss [n].
    """
    targets, narrow = target.T.tolist(), (tilt.spread <= NARROW)[0].tolist()
    best = [(points[0].item(), math.inf)] * len(targets)
    for side in _sides(points.tolist()):
        starts = run([best_point(goal, side) for goal in targets], tilt, Tilt.divergences)
        ends = run([polish(*of) for of in zip(targets, starts, narrow, strict=True)], tilt, Tilt.line)
        found = run([last_step(*of) for of in zip(targets, ends, strict=True)], tilt, Tilt.divergences)
        best = [new if new[1] < old[1] else old for new, old in zip(found, best, strict=True)]
    w, loss = torch.tensor(best, dtype=torch.float32, device=points.device).view(-1, 2).T
    return torch.where(tilt.flat, points[0], w), loss


def best_alone(weights: Tensor, losses: Tensor, experts: int) -> Tensor:
    """Weights [T, n]: the weight of the expert with the lowest loss, and 0 for the others.

    `weights` [1, T n] and `losses` [T n] are those of each expert on its own. On ties the first expert wins.
    """
    if experts == 1:
        return weights
    others = torch.arange(experts, device=weights.device)[:, None] != losses.view(experts, -1).argmin(0)
    return weights.view(experts, -1).masked_fill(others, 0.0)


def _sides(points: Sequence[float]) -> list[Sequence[float]]:
    """`points` on each side of 0, sorted by distance from 0, which is in both."""
    sides = [p for p in points if p <= 0][::-1], [p for p in points if p >= 0]
    return [side for side in sides if len(side) > 1] or [points]


class Start(NamedTuple):
    """The start `w` and the interval [`low`, `high`] of the refinement."""

    w: float
    low: float
    high: float
    best: float
    """The best point."""
    loss: float
    """Its loss."""


def best_point(target: Pair, points: Sequence[float]) -> Search[Start]:
    """The point of lowest loss among `points` [G], which are on one side of 0 and sorted by distance from 0.

    Not all points are evaluated. Both divergences grow with |alpha|, so one evaluation bounds them at every other
    point, and so bounds the loss from below. Each step evaluates the point nearest to a guess among those that can
    still win: 3 to 5 of 21 in all.
    """
    known: dict[int, Pair] = {0: (0.0, 0.0)} if points[0] == 0 else {}
    best, loss = 0, target[0] ** 2 + target[1] ** 2 if known else math.inf
    distances, near = list(map(abs, points)), len(points) // 2
    middles = [(a + b) / 2 for a, b in pairwise(distances)]
    while (look := _next_point(target, points, known, loss, near)) is not None:
        forward, backward = yield (points[look],)
        known[look] = forward, backward
        here = (forward - target[0]) ** 2 + (backward - target[1]) ** 2
        if here < loss:
            best, loss = look, here
            # Near 0 both divergences grow with the square of alpha.
            square = (target[0] + target[1]) / (forward + backward) if forward + backward > 0 else math.nan
            if 0 <= square < math.inf:
                near = bisect_left(middles, distances[look] * math.sqrt(square))
    return _start(target, points, known, best, loss)


def _next_point(target: Pair, points: Sequence[float], known: dict[int, Pair], loss: float, near: int) -> int | None:
    """Among the points whose bounds allow a smaller loss, the one nearest to `near`; None if there is none."""
    (t0, t1), look = target, None
    i, low0, low1 = -1, 0.0, 0.0
    for j in (*sorted(known), len(points)):
        high0, high1 = known.get(j, (math.inf, math.inf))
        if j - i > 1:
            off0 = low0 - t0 if low0 > t0 else t0 - high0 if t0 > high0 else 0.0
            off1 = low1 - t1 if low1 > t1 else t1 - high1 if t1 > high1 else 0.0
            k = min(max(near, i + 1), j - 1)
            if off0 * off0 + off1 * off1 < loss and (look is None or abs(k - near) < abs(look - near)):
                look = k
        i, low0, low1 = j, high0, high1
    return look


def _start(target: Pair, points: Sequence[float], known: dict[int, Pair], best: int, loss: float) -> Start:
    """Starts at the best point, interpolated towards those of its neighbours that were evaluated."""
    w = points[best]
    for neighbour in (best - 1, best + 1):
        if neighbour in known and best in known:
            w += _towards(target, known[best], known[neighbour]) * (points[neighbour] - points[best])
    low, high = sorted((points[max(best - 1, 0)], points[min(best + 1, len(points) - 1)]))
    return Start(w, low, high, points[best], loss)


def _towards(target: Pair, here: Pair, there: Pair) -> float:
    """The fraction of the segment from `here` to `there` at which it is closest to the target."""
    way = there[0] - here[0], there[1] - here[1]
    length = way[0] ** 2 + way[1] ** 2
    share = ((target[0] - here[0]) * way[0] + (target[1] - here[1]) * way[1]) / length if length > 0 else 0.0
    return min(max(share, 0.0), 1.0)


class End(NamedTuple):
    """The best weight evaluated, its loss, and the last Newton iterate, not yet evaluated."""

    w: float
    loss: float
    newton: float | None = None


def polish(target: Pair, start: Start, narrow: bool) -> Search[End]:
    """The best weight by Newton's method, safeguarded by bisection on the sign of the slope.

    If d is `narrow`, the first short Newton step is the last one, and `last_step` evaluates it.
    """
    w, low, high, best, loss = start
    for _ in range(MAX_STEPS):
        *value, f0, f1, s0, s1 = yield (w,)
        g0, g1 = value[0] - target[0], value[1] - target[1]
        here, slope, curvature = g0 * g0 + g1 * g1, g0 * f0 + g1 * f1, f0 * f0 + f1 * f1 + g0 * s0 + g1 * s1
        best, loss = (w, here) if here < loss else (best, loss)
        low, high = w if slope < 0 else low, w if slope > 0 else high
        newton = w - slope / curvature if curvature > 0 else math.nan
        safe = low <= newton <= high
        step = (newton if safe else (low + high) / 2) - w
        if not abs(step) >= (CLOSE if safe and narrow else BISECTED):
            better = safe and narrow and here - slope * slope / curvature < loss
            return End(best, loss, newton if better else None)
        w += step
    return End(best, loss)


def last_step(target: Pair, end: End) -> Search[Pair]:
    """The weight and its loss: those of the last Newton step, unless its loss is above the best one."""
    w, loss, newton = end
    if newton is None:
        return w, loss
    forward, backward = yield (newton,)
    there = (forward - target[0]) ** 2 + (backward - target[1]) ** 2
    return (newton, there) if math.sqrt(there) <= math.sqrt(loss) + ROUNDING else (w, loss)
