"""MatchKL's exact search for one expert in one Triton kernel: the host reads no result, and rows are read few times.

One program handles a row and reads it three times:

1. base, expert and antiexpert give the targets, the mean of d under the base, and the range of d;
2. psi (see `tilt.py`) and its first two derivatives are computed at NODES weights. Both divergences follow from psi
   and psi'. Between nodes the quintic through these values gives them to about 1e-6 for logits of language models. This
   model of the loss gives the best of the rule's points and of some between them, and the minimum between its
   neighbours;
3. the fused logits are written with that weight, and the divergences there are computed. If the loss could still fall
   by more than rounding, Newton's method, safeguarded by bisection, continues; each step reads the row once.

If exponents are too large for sums in float32, or step 3 shows that the model is wrong, the loss itself is computed at
the points, instead of step 2. The loss found is that of `line_search` up to rounding, or lower if a narrow minimum lies
between two points of the rule. Needs Triton, so it is only imported when tensors are on a GPU (or when Triton's
interpreter is on, as in tests). Shapes: n rows, V tokens, N nodes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = tl.constexpr(4096)
"""Tokens per block."""
WARPS = 16
NODES = tl.constexpr(8)
LARGE = tl.constexpr(60.0)
"""As in `tilt.py`."""
FLAT = tl.constexpr(1e-4)
"""As in `tilt.py`."""
NARROW = tl.constexpr(64.0)
"""As in `search.py`: only if d varies by less than this does the slope predict how far the loss may still fall."""
SHORT = tl.constexpr(3e-3)
"""This holds only for steps shorter than this."""
LATTICE = 32
"""The minimum number of intervals between the ends of the rule's points. The search finds the best of their endpoints,
then the lowest loss between its neighbours."""
TRUSTED = tl.constexpr(1e-4)
"""The model is discarded if the loss differs from it by more than this, relative or in nats squared."""
ZOOMS = tl.constexpr(3)
SAMPLES = tl.constexpr(64)
"""Weights at which a zoom evaluates the model: three zooms reach 1e-5 of the spacing of the points."""
STEPS = tl.constexpr(30)
"""The maximum number of steps of Newton's method or bisection."""
CLOSE = tl.constexpr(1e-6)
"""A loss that can fall by at most this, relative or in nats squared, counts as a minimum."""
SHORTEST = tl.constexpr(1e-7)
"""The search ends after a step shorter than this."""
INFINITY = tl.constexpr(float("inf"))


@triton.jit
def _load(base, expert, anti, at, inside):
    """Base, d and antiexpert at a block of tokens; d is 0 where a pair is masked; past the row's end all are -inf."""
    b = tl.load(base + at, mask=inside, other=-INFINITY).to(tl.float32)
    e = tl.load(expert + at, mask=inside, other=-INFINITY).to(tl.float32)
    a = tl.load(anti + at, mask=inside, other=-INFINITY).to(tl.float32)
    known = (e != -INFINITY) & (a != -INFINITY)
    return b, tl.where(known, e - a, 0.0), tl.where(known, a, -INFINITY)


@triton.jit
def _add(x, d, top, total, moment):
    """Adds exp(x) and exp(x) d to sums that are kept relative to exp(top), lane by lane."""
    higher = tl.maximum(top, x)
    scale = tl.where(higher == -INFINITY, 0.0, higher)
    p, kept = tl.exp(x - scale), tl.exp(top - scale)
    return higher, total * kept + p, moment * kept + p * d


@triton.jit
def _close(top, total, moment):
    """The log of the sum over all lanes, and the mean of d; 0 and 0 where every token is masked."""
    highest = tl.max(top)
    scale = tl.where(highest == -INFINITY, 0.0, highest)
    kept = tl.exp(top - scale)
    z = tl.sum(total * kept)
    empty = highest == -INFINITY
    return tl.where(empty, 0.0, scale + tl.log(z)), tl.where(empty, 0.0, tl.sum(moment * kept) / z)


@triton.jit
def _survey(base, expert, anti, V):
    """The first read: the base's log-normaliser, the mean of d under the base, both targets, the range of d over all
    tokens and over those that the base allows, whether the base masks all tokens, and whether any value is NaN or +inf.
    """
    lanes = tl.arange(0, BLOCK)
    nothing, zero = tl.full([BLOCK], -INFINITY, tl.float32), tl.zeros([BLOCK], tl.float32)
    top_b, z_b, m_b = nothing, zero, zero
    top_a, z_a, m_a = nothing, zero, zero
    top_e, z_e, m_e = nothing, zero, zero
    low, high, low_allowed, high_allowed, plain, bad = -nothing, nothing, -nothing, nothing, zero, zero
    for start in range(0, V, BLOCK):
        at = start + lanes
        inside = at < V
        b, d, a = _load(base, expert, anti, at, inside)
        top_b, z_b, m_b = _add(b, d, top_b, z_b, m_b)
        top_a, z_a, m_a = _add(a, d, top_a, z_a, m_a)
        top_e, z_e, m_e = _add(a + d, d, top_e, z_e, m_e)
        low, high = tl.minimum(low, tl.where(inside, d, INFINITY)), tl.maximum(high, tl.where(inside, d, -INFINITY))
        allowed = b != -INFINITY
        low_allowed = tl.minimum(low_allowed, tl.where(allowed, d, INFINITY))
        high_allowed = tl.maximum(high_allowed, tl.where(allowed, d, -INFINITY))
        plain += d
        fine = (b < INFINITY) & (a < INFINITY) & (d < INFINITY) & (d > -INFINITY)
        bad = tl.maximum(bad, tl.where(fine, 0.0, 1.0))
    uniform = tl.max(top_b) == -INFINITY
    psi0, mean0 = _close(top_b, z_b, m_b)
    psi0, mean0 = tl.where(uniform, tl.log(V * 1.0), psi0), tl.where(uniform, tl.sum(plain) / V, mean0)
    psi_a, mean_a = _close(top_a, z_a, m_a)
    psi_e, mean_e = _close(top_e, z_e, m_e)
    psi = psi_e - psi_a
    low, high = tl.min(low), tl.max(high)
    flat = tl.where(uniform, high - low, tl.max(high_allowed) - tl.min(low_allowed)) <= FLAT
    return psi0, mean0, mean_e - psi, psi - mean_a, low, high, flat, uniform, tl.max(bad) > 0


@triton.jit
def _row(base, expert, anti, at, inside, psi0, mean0, uniform):
    """Log-probabilities of the base, d less its mean under the base, and the base itself and d."""
    b, d, _ = _load(base, expert, anti, at, inside)
    log_p = tl.where(uniform, tl.where(inside, 0.0, -INFINITY), b) - psi0
    return log_p, tl.where(inside, d - mean0, 0.0), b, d


@triton.jit
def _nodes(base, expert, anti, V, psi0, mean0, uniform, weights):
    """psi and its first two derivatives at `weights` [N]; exponents are within LARGE."""
    lanes = tl.arange(0, BLOCK // 4)
    z = tl.zeros([BLOCK // 4, NODES], tl.float32)
    m, s = z, z
    for start in range(0, V, BLOCK // 4):
        at = start + lanes
        log_p, d, _, _ = _row(base, expert, anti, at, at < V, psi0, mean0, uniform)
        p = tl.exp(log_p[:, None] + weights[None, :] * d[:, None])
        pd = p * d[:, None]
        z, m, s = z + p, m + pd, s + pd * d[:, None]
    total, mean, square = tl.sum(z, 0), tl.sum(m, 0), tl.sum(s, 0)
    mean = mean / total
    return tl.log(total), mean, square / total - mean * mean


@triton.jit
def _points(base, expert, anti, V, psi0, mean0, uniform, weights):
    """psi and its derivative at `weights` [N], for exponents of any size."""
    lanes = tl.arange(0, BLOCK // 4)
    z = tl.zeros([BLOCK // 4, NODES], tl.float32)
    m, top = z, z - INFINITY
    for start in range(0, V, BLOCK // 4):
        at = start + lanes
        log_p, d, _, _ = _row(base, expert, anti, at, at < V, psi0, mean0, uniform)
        x = log_p[:, None] + weights[None, :] * d[:, None]
        higher = tl.maximum(top, x)
        scale = tl.where(higher == -INFINITY, 0.0, higher)
        p, kept = tl.exp(x - scale), tl.exp(top - scale)
        top, z, m = higher, z * kept + p, m * kept + p * d[:, None]
    highest = tl.max(top, 0)
    kept = tl.exp(top - highest[None, :])
    total = tl.sum(z * kept, 0)
    return highest + tl.log(total), tl.sum(m * kept, 0) / total


@triton.jit
def _at(base, expert, anti, out, V, psi0, mean0, uniform, w, WRITE: tl.constexpr):
    """psi and its first three derivatives at w, for exponents of any size; writes the fused logits with weight w."""
    lanes = tl.arange(0, BLOCK)
    zero = tl.zeros([BLOCK], tl.float32)
    top, z, m1, m2, m3 = zero - INFINITY, zero, zero, zero, zero
    for start in range(0, V, BLOCK):
        at = start + lanes
        inside = at < V
        log_p, d, b, plain = _row(base, expert, anti, at, inside, psi0, mean0, uniform)
        if WRITE:
            tl.store(out + at, b + w * plain, mask=inside)
        x = log_p + w * d
        higher = tl.maximum(top, x)
        scale = tl.where(higher == -INFINITY, 0.0, higher)
        p, kept = tl.exp(x - scale), tl.exp(top - scale)
        top, z = higher, z * kept + p
        p = p * d
        m1 = m1 * kept + p
        p = p * d
        m2 = m2 * kept + p
        m3 = m3 * kept + p * d
    highest = tl.max(top)
    kept = tl.exp(top - highest)
    total = tl.sum(z * kept)
    mean, square, cube = tl.sum(m1 * kept) / total, tl.sum(m2 * kept) / total, tl.sum(m3 * kept) / total
    variance = square - mean * mean
    return highest + tl.log(total), mean, variance, cube - mean * (3 * square - 2 * mean * mean)


@triton.jit
def _loss(w, psi, mean, forward, backward):
    """KL(P~ || P) = w psi' - psi and KL(P || P~) = psi, for d with mean 0 under the base."""
    gap, back = w * mean - psi - forward, psi - backward
    return gap * gap + back * back


@triton.jit
def _model_loss(w, low, h, psi, mean, variance, forward, backward):
    """The loss at `w` [M] of the quintic through psi, psi' and psi'' at the nodes low, low + h, ..."""
    nodes = tl.arange(0, NODES)
    cell = tl.minimum(tl.maximum(tl.floor((w - low) / h), 0.0), NODES - 2.0)
    t = (w - low) / h - cell
    left = (nodes[None, :] == cell.to(tl.int32)[:, None]).to(tl.float32)
    right = (nodes[None, :] == cell.to(tl.int32)[:, None] + 1).to(tl.float32)
    v0, v1 = tl.sum(left * psi[None, :], 1), tl.sum(right * psi[None, :], 1)
    s0, s1 = tl.sum(left * mean[None, :], 1) * h, tl.sum(right * mean[None, :], 1) * h
    c0, c1 = tl.sum(left * variance[None, :], 1) * h * h, tl.sum(right * variance[None, :], 1) * h * h
    t2 = t * t
    t3, t4 = t2 * t, t2 * t2
    t5 = t4 * t
    a = 10 * t3 - 15 * t4 + 6 * t5
    value = (
        (v1 - v0) * a
        + v0
        + s0 * (t - 6 * t3 + 8 * t4 - 3 * t5)
        + s1 * (-4 * t3 + 7 * t4 - 3 * t5)
        + c0 * (0.5 * t2 - 1.5 * t3 + 1.5 * t4 - 0.5 * t5)
        + c1 * (0.5 * t3 - t4 + 0.5 * t5)
    )
    slope = (
        (v1 - v0) * (30 * t2 - 60 * t3 + 30 * t4)
        + s0 * (1 - 18 * t2 + 32 * t3 - 15 * t4)
        + s1 * (-12 * t2 + 28 * t3 - 15 * t4)
        + c0 * (t - 4.5 * t2 + 6 * t3 - 2.5 * t4)
        + c1 * (1.5 * t2 - 4 * t3 + 2.5 * t4)
    )
    return _loss(w, value, slope / h, forward, backward)


@triton.jit
def _first_lowest(loss, w, M: tl.constexpr):
    """The weight of the first minimum of the losses; both [M]."""
    i = tl.arange(0, M)
    first = tl.min(tl.where(loss == tl.min(loss), i, M))
    return tl.sum(tl.where(i == first, w, 0.0))


@triton.jit
def _by_model(base, expert, anti, V, psi0, mean0, uniform, forward, backward, low, high, G, POINTS: tl.constexpr):
    """The second read: a weight, the interval in which it is the best, and its loss by the model."""
    h, step = (high - low) / (NODES - 1), (high - low) / (G - 1)
    psi, mean, variance = _nodes(base, expert, anti, V, psi0, mean0, uniform, low + h * tl.arange(0, NODES))
    i = tl.arange(0, POINTS)
    points = tl.minimum(low + step * i, high)
    loss = tl.where(i < G, _model_loss(points, low, h, psi, mean, variance, forward, backward), INFINITY)
    best = _first_lowest(loss, points, POINTS)
    first, last = tl.maximum(best - step, low), tl.minimum(best + step, high)
    w, inner, outer, lowest = best, first, last, tl.min(loss)
    for _ in tl.static_range(ZOOMS):
        fine = (outer - inner) / (SAMPLES - 1)
        samples = inner + fine * tl.arange(0, SAMPLES)
        loss = _model_loss(samples, low, h, psi, mean, variance, forward, backward)
        w, lowest = _first_lowest(loss, samples, SAMPLES), tl.min(loss)
        inner, outer = tl.maximum(w - fine, inner), tl.minimum(w + fine, outer)
    return w, first, last, lowest


@triton.jit
def _by_points(base, expert, anti, V, psi0, mean0, uniform, forward, backward, low, high, G):
    """The same from the loss itself, without a model: each read evaluates NODES weights."""
    step = (high - low) / (G - 1)
    best, lowest = low, low * 0 + INFINITY
    first, last = low, high
    for start in range(0, G + ZOOMS * NODES, NODES):
        # After the G points, evaluate ZOOMS times NODES weights between the neighbours of the best one so far.
        zoom = start >= G
        fine = tl.where(zoom, (last - first) / (NODES - 1), step)
        points = tl.where(zoom, first, low + step * start) + fine * tl.arange(0, NODES)
        points = tl.minimum(points, high)
        psi, mean = _points(base, expert, anti, V, psi0, mean0, uniform, points)
        loss = _loss(points, psi, mean, forward, backward)
        loss = tl.where(loss == loss, loss, INFINITY)
        here = tl.min(loss)
        best, lowest = tl.where(here < lowest, _first_lowest(loss, points, NODES), best), tl.minimum(here, lowest)
        first, last = tl.maximum(best - fine, low), tl.minimum(best + fine, high)
    return best, first, last


@triton.jit
def _search(
    base, expert, anti, out, weights, losses, targets, stride_b, stride_e, stride_a, V, n, low, high, at_flat, G,
    POINTS: tl.constexpr, GIVEN: tl.constexpr, WRITE: tl.constexpr,
):  # fmt: skip
    """One row: its weight and loss, and its fused logits if WRITE. `targets` [2, n] are read if GIVEN."""
    row = tl.program_id(0).to(tl.int64)
    base, expert, anti = base + row * stride_b, expert + row * stride_e, anti + row * stride_a
    out += row * V
    psi0, mean0, forward, backward, least, most, flat, uniform, bad = _survey(base, expert, anti, V)
    if GIVEN:
        forward, backward = tl.load(targets + row), tl.load(targets + n + row)
    low, high = tl.zeros([], tl.float32) + low, tl.zeros([], tl.float32) + high
    reach = tl.maximum(tl.abs(low), tl.abs(high))
    w, first, last, expected = low * 0 + at_flat, low, high, low * 0
    some = (not flat) & (not bad)
    modelled = some & (reach * tl.maximum(most - mean0, mean0 - least) <= LARGE)
    if modelled:
        w, first, last, expected = _by_model(
            base, expert, anti, V, psi0, mean0, uniform, forward, backward, low, high, G, POINTS
        )
    elif some:
        w, first, last = _by_points(base, expert, anti, V, psi0, mean0, uniform, forward, backward, low, high, G)
    w = tl.where(bad, float("nan"), w)
    best, lowest, left = w, low * 0 + INFINITY, tl.zeros([], tl.int32) + STEPS
    while left > 0:
        psi, mean, variance, skew = _at(base, expert, anti, out, V, psi0, mean0, uniform, w, WRITE)
        loss = _loss(w, psi, mean, forward, backward)
        best, lowest = tl.where(loss < lowest, w, best), tl.minimum(loss, lowest)
        if modelled & (left == STEPS) & (tl.abs(loss - expected) > TRUSTED * tl.maximum(loss, 1.0)):
            w, first, last = _by_points(base, expert, anti, V, psi0, mean0, uniform, forward, backward, low, high, G)
            left = left - 1
        else:
            gap, back = w * mean - psi - forward, psi - backward
            slope = gap * w * variance + back * mean
            curvature = w * w * variance * variance + gap * (variance + w * skew) + mean * mean + back * variance
            first, last = tl.where(slope < 0, w, first), tl.where(slope > 0, w, last)
            newton = w - slope / curvature
            safe = (curvature > 0) & (newton >= first) & (newton <= last)
            foreseen = slope * slope / curvature
            after = tl.where(safe, newton, (first + last) / 2)
            known = safe & (most - least <= NARROW) & (tl.abs(after - w) <= SHORT)
            falls = (foreseen > CLOSE * tl.maximum(loss, 1.0)) | (not known)
            go_on = falls & (tl.abs(after - w) >= SHORTEST) & some & (left > 1)
            w, left = tl.where(go_on, after, w), tl.where(go_on, left - 1, 0)
    tl.store(weights + row, best)
    tl.store(losses + row, lowest)
    # `w` was evaluated last. It needs no second name: Triton does not carry one set in the loop out of the loop.
    if WRITE and w != best:
        _at(base, expert, anti, out, V, psi0, mean0, uniform, best, WRITE)


@triton.jit
def _targets(expert, anti, targets, stride_e, stride_a, V, n):
    """Both targets of one row."""
    row = tl.program_id(0).to(tl.int64)
    expert, anti = expert + row * stride_e, anti + row * stride_a
    _, _, forward, backward, _, _, _, _, _ = _survey(anti, expert, anti, V)
    tl.store(targets + row, forward)
    tl.store(targets + n + row, backward)


def targets_of(expert: Tensor, antiexpert: Tensor) -> Tensor:
    """KL(Q_t || Q) and KL(Q || Q_t) [2, n] of rows [n, V] of any float type."""
    n, vocabulary = expert.shape
    targets = torch.empty(2, n, dtype=torch.float32, device=expert.device)
    _targets[(n,)](expert, antiexpert, targets, expert.stride(0), antiexpert.stride(0), vocabulary, n, num_warps=WARPS)
    return targets


def search(
    base: Tensor, expert: Tensor, antiexpert: Tensor, points: Sequence[float], at_flat: float,
    targets: Tensor | None = None, out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Weights [n] and losses [n] of rows [n, V] of any float type, contiguous along V; fused logits [n, V] into `out`.

    `points`, 2 or more, are evenly spaced; `at_flat` is the weight of a row whose d is the same everywhere. `targets`
    [2, n]; None: those of the expert.
    """
    n, vocabulary = base.shape
    weights = torch.empty(n, dtype=torch.float32, device=base.device)
    losses = torch.empty_like(weights)
    tensors = (base, expert, antiexpert, weights if out is None else out, weights, losses)
    strides = (base.stride(0), expert.stride(0), antiexpert.stride(0))
    cells = len(points) - 1
    cells *= -(-LATTICE // cells)
    _search[(n,)](
        *tensors, losses if targets is None else targets, *strides, vocabulary, n, points[0], points[-1], at_flat,
        cells + 1, POINTS=triton.next_power_of_2(cells + 1), GIVEN=targets is not None,
        WRITE=out is not None, num_warps=WARPS,
    )  # fmt: skip
    return weights, losses


def fuse(base: Tensor, experts: Tensor, antiexpert: Tensor, points: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Fused logits [n, V] and weights [T, n], at most one of them nonzero per row; experts are [T, n, V]."""
    base, experts, antiexpert = (x if x.stride(-1) == 1 else x.contiguous() for x in (base, experts, antiexpert))
    sides = [[p for p in points if p <= 0], [p for p in points if p >= 0]]
    sides = [side for side in sides if len(side) > 1] or [list(points)]
    if len(experts) == len(sides) == 1:
        out = torch.empty(base.shape, dtype=torch.float32, device=base.device)
        return out, search(base, experts[0], antiexpert, sides[0], points[0], out=out)[0][None]
    targets = torch.stack([targets_of(expert, antiexpert) for expert in experts]).mean(0)
    found = [[search(base, expert, antiexpert, side, points[0], targets) for side in sides] for expert in experts]
    lines = [_lower(*of_expert) if len(of_expert) == 2 else of_expert[0] for of_expert in found]
    weights, losses = torch.stack([w for w, _ in lines]), torch.stack([loss for _, loss in lines])
    others = torch.arange(len(lines), device=base.device)[:, None] != losses.argmin(0)
    weights = weights.masked_fill(others, 0.0).masked_fill(weights.isnan().any(0), torch.nan)
    out = base.float()
    for expert, weight in zip(experts, weights, strict=True):
        masked = torch.isneginf(expert) | torch.isneginf(antiexpert)
        out = torch.addcmul(out, (expert.float() - antiexpert.float()).masked_fill(masked, 0.0), weight[:, None])
    return out, weights


def _lower(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """For each row the weight and loss with the lower loss; the first on ties."""
    better = other[1] < one[1]
    return torch.where(better, other[0], one[0]), torch.where(better, other[1], one[1])
