"""Statistics of per-item metric values. Shapes: n items, A arms, R bootstrap resamples.

Values are float arrays [n] in the order of the items, the same items for every arm; NaN marks an invalid item (one
whose answer the metric could not judge). Invalid items are left out of that arm's mean and counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from proxytune.record import Estimate

Values = NDArray[np.float64]

RESAMPLES = 10_000
CONFIDENCE = 0.95
NOISE = 2.0
"""A difference smaller than this many of its standard errors counts as noise."""
_CHUNK = 2_000_000
"""Resampled items drawn at a time: bounds memory, not the result."""


@dataclass(frozen=True)
class Ratio:
    """A ratio with its bootstrap interval; where either is None, `why` says why."""

    value: float | None
    interval: tuple[float, float] | None = None
    why: str | None = None


def as_values(items: Iterable[float | bool | None]) -> Values:
    """Metric values as an array [n]; None, NaN and infinite values are invalid and become NaN."""
    values = np.array([math.nan if item is None else float(item) for item in items], dtype=np.float64)
    return np.where(np.isfinite(values), values, math.nan)


def mean(values: Values) -> Estimate:
    """Mean and its standard error (sample standard deviation / sqrt n)."""
    valid = values[~np.isnan(values)]
    n = len(valid)
    stderr = float(valid.std(ddof=1)) / math.sqrt(n) if n > 1 else None
    return Estimate(value=float(valid.mean()) if n else None, stderr=stderr, n=n, n_invalid=len(values) - n)


def paired_difference(a: Values, b: Values) -> Estimate:
    """mean(a) - mean(b), each over its own valid items, with the standard error of items paired.

    Without invalid items this is the usual paired standard error. With some, each mean is a ratio of sums, and the
    error is that of its linearisation (the delta method): one term per item, zero where the item is invalid.
    """
    terms_a, terms_b = _influence(a), _influence(b)
    both = int((~np.isnan(a) & ~np.isnan(b)).sum())
    if terms_a is None or terms_b is None:
        return Estimate(value=None, n=both, n_invalid=len(a) - both)
    value = float(np.nanmean(a) - np.nanmean(b))
    stderr = None
    if both > 1:
        stderr = math.sqrt(float(((terms_a - terms_b) ** 2).sum()) / (len(a) - 1) / len(a))
    return Estimate(value=value, stderr=stderr, n=both, n_invalid=len(a) - both)


def _influence(values: Values) -> Values | None:
    """[n] each item's pull on the mean of the valid items; None if there are none."""
    valid = ~np.isnan(values)
    if not valid.any():
        return None
    return np.where(valid, values - np.nanmean(values), 0.0) / valid.mean()


def gaps_closed(
    arms: Mapping[str, Values], base: Values, tuned: Values, *, higher_is_better: bool = True, seed: int = 0
) -> dict[str, Ratio]:
    """(arm - base) / (tuned - base) of mean values, with a paired percentile bootstrap interval over items.

    The formula is the same for metrics where lower is better. Undefined, with the reason, where tuned - base is 0 or
    smaller than 2 of its paired standard errors (noise), has no standard error, or where tuned is worse than base.
    All arms share the same resamples. Liu et al. 2024 (arXiv 2401.08565), section 3.
    """
    why = no_gap(base, tuned, higher_is_better=higher_is_better)
    if why is not None:
        return {name: Ratio(None, None, why) for name in arms}
    stacked = np.stack([base, tuned, *arms.values()])
    point = _ratios(_means(stacked, np.ones((1, stacked.shape[1]))))[0]
    resampled = np.concatenate([_ratios(_means(stacked, counts)) for counts in _resamples(stacked.shape[1], seed)])
    return {name: _with_interval(point[i], resampled[:, i]) for i, name in enumerate(arms)}


def no_gap(base: Values, tuned: Values, *, higher_is_better: bool = True) -> str | None:
    """Why there is no gap between base and tuned to speak of; None if there is one."""
    gap = paired_difference(tuned, base)
    if gap.value is None or gap.n == 0:
        return "base and tuned share no valid item"
    if gap.value == 0:
        return "tuned − base = 0"
    if gap.stderr is None:
        return f"tuned − base = {gap.value:.3g} on a single item: no standard error"
    said = f"tuned − base = {gap.value:.3g} ± {gap.stderr:.2g}"
    if abs(gap.value) < NOISE * gap.stderr:
        return f"{said}: inside noise (less than {NOISE:g} standard errors)"
    if (gap.value > 0) != higher_is_better:
        return f"{said}: tuned is worse than base"
    return None


def relative_performance(arm: Estimate, tuned: Estimate) -> Ratio:
    """arm / tuned, what Fan et al. 2024 (arXiv 2406.15480) print; below 1 is better where lower is better."""
    if arm.value is None or tuned.value is None:
        return Ratio(None, None, "no valid item")
    if tuned.value == 0:
        return Ratio(None, None, "tuned = 0")
    return Ratio(arm.value / tuned.value)


def _resamples(n: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Chunks [rows, n], R rows in all: how often each item was drawn when n are drawn with replacement."""
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // n)
    for start in range(0, RESAMPLES, rows):
        size = min(rows, RESAMPLES - start)
        drawn = rng.integers(0, n, (size, n)) + n * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)


def _means(values: Values, counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """[rows, A] means of `values` [A, n] with each item counted `counts` [rows, n] times; NaN without a valid item."""
    valid = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return counts @ np.where(valid, values, 0.0).T / (counts @ valid.T)


def _ratios(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """[rows, A] gap closed from means [rows, base | tuned | A arms]; 0/0 is NaN, x/0 infinite."""
    base, tuned = means[:, :1], means[:, 1:2]
    with np.errstate(invalid="ignore", divide="ignore"):
        return (means[:, 2:] - base) / (tuned - base)


def _with_interval(value: float, resampled: NDArray[np.float64]) -> Ratio:
    """The ratio with its percentile interval over the resamples where it is defined."""
    if math.isnan(value):
        return Ratio(None, None, "no valid item")
    with np.errstate(invalid="ignore"):
        tail = 50 * (1 - CONFIDENCE)
        low, high = np.percentile(resampled[~np.isnan(resampled)], [tail, 100 - tail])
    if not (math.isfinite(low) and math.isfinite(high)):
        return Ratio(float(value), None, "tuned equals base in too many resamples for an interval")
    return Ratio(float(value), (float(low), float(high)))
