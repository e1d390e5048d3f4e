"""Statistics of per-item metric values. Shapes: n items, G groups of items, A arms, R bootstrap resamples.

Values are float arrays [n] in the order of the items, the same items for every arm; NaN marks an invalid item (one
whose answer the metric could not judge). Invalid items are left out of that arm's mean and counted.

Errors are the usual estimates from the sample, clustered where items are grouped (Miller 2024, arXiv 2411.00640,
section 2.2). A sample without variation gives the estimate 0, which only says that the sample is small. For a metric
between 0 and 1 the error is then taken from an interval that holds its level there and shrinks with 1/n: Wilson's
(1927) for a mean, and for a paired difference that of Agresti and Min (2005), who add half a pair of each kind. For any
other metric there is none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from proxytune.record import Estimate, GapMethod, Mean, Method

Values = NDArray[np.float64]
Groups = NDArray[np.int64]

RESAMPLES = 10_000
CONFIDENCE = 0.95
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
NOISE = 2.0
"""A difference smaller than this many of its standard errors counts as noise."""
_CHUNK = 2_000_000
"""Resampled items drawn at a time: bounds memory, not the result."""
_ROUNDING = 1e-12
"""A spread below this part of the largest value is no variation."""


@dataclass(frozen=True)
class Design:
    """What a task's statistics depend on besides its values."""

    groups: Groups | None = None
    """[n] the group of each item; None: items are independent."""
    fraction: bool = False
    """Whether the metric lies between 0 and 1."""
    higher_is_better: bool = True

    def groups_of(self, valid: NDArray[np.bool_]) -> Groups:
        """[n valid] groups numbered from 0; each item is its own where there are fewer than two groups."""
        if self.groups is None or len(np.unique(self.groups[valid])) < 2:
            return np.arange(valid.sum())
        return np.unique(self.groups[valid], return_inverse=True)[1]


INDEPENDENT = Design()


@dataclass(frozen=True)
class Ratio:
    """A ratio with its interval; where either is None, `why` says why."""

    value: float | None
    interval: tuple[float, float] | None = None
    why: str | None = None
    method: GapMethod | None = None
    """Of the interval."""


def as_values(items: Iterable[float | bool | None]) -> Values:
    """Metric values as an array [n]; None, NaN and infinite values are invalid and become NaN."""
    values = np.array([math.nan if item is None else float(item) for item in items])
    return np.where(np.isfinite(values), values, math.nan)


def groups(labels: Iterable[str]) -> Groups:
    """[n] groups numbered from 0: items with equal labels are a group."""
    return np.unique(list(labels), return_inverse=True)[1]


def are_fractions(values: Values) -> bool:
    """Whether all valid values lie between 0 and 1."""
    return bool((np.isnan(values) | ((values >= 0) & (values <= 1))).all())


def mean(values: Values, design: Design = INDEPENDENT) -> Mean:
    """Mean and its standard error; where every value is 0 or 1 also Wilson's interval."""
    valid = ~np.isnan(values)
    kept, groups = values[valid], design.groups_of(valid)
    n, n_invalid = len(kept), len(values) - len(kept)
    if n == 0:
        return Mean(value=None, n_invalid=n_invalid)
    value = float(kept.mean())
    stderr, method = _error(kept - value, groups, scale=abs(kept).max())
    effective = _effective_n(kept - value, groups)
    if stderr == 0:
        stderr, method = (wilson_error(value, effective), "wilson") if design.fraction else (None, None)
    interval = wilson(value, effective) if np.isin(kept, (0, 1)).all() else None
    return Mean(value=value, stderr=stderr, stderr_method=method, n=n, n_invalid=n_invalid, interval=interval)


def paired_difference(a: Values, b: Values, design: Design = INDEPENDENT) -> Estimate:
    """mean(a) - mean(b), each over its own valid items, with the standard error of items paired.

    Without invalid items this is the usual paired standard error. With some, each mean is a ratio of sums, and the
    error is that of its linearisation (the delta method): one term per item, zero where the item is invalid.
    An array minus itself is exactly 0.
    """
    both = ~np.isnan(a) & ~np.isnan(b)
    n, n_invalid = int(both.sum()), int((~both).sum())
    terms_a, terms_b = _influence(a), _influence(b)
    if terms_a is None or terms_b is None:
        return Estimate(value=None, n_invalid=n_invalid)
    value = float(np.nanmean(a) - np.nanmean(b))
    if a is b:
        return Estimate(value=value, stderr=0.0, stderr_method="exact", n=n, n_invalid=n_invalid)
    if n < 2:
        return Estimate(value=value, n=n, n_invalid=n_invalid)
    scale = max(np.nanmax(abs(a)), np.nanmax(abs(b)))
    stderr, method = _error(terms_a - terms_b, design.groups_of(np.full(len(a), True)), scale)
    if stderr == 0:
        edge = agresti_min_error((a - b)[both], len(np.unique(design.groups_of(both))))
        stderr, method = (edge, "agresti-min") if design.fraction else (None, None)
    return Estimate(value=value, stderr=stderr, stderr_method=method, n=n, n_invalid=n_invalid)


def wilson(value: float, n: float) -> tuple[float, float]:
    """The 95 % interval of a proportion `value` of n items (Wilson 1927)."""
    centre, half = (value + Z**2 / (2 * n)) / (1 + Z**2 / n), Z * wilson_error(value, n)
    # Rounding must not leave a value of 0 or 1 out of its own interval.
    return min(value, max(0.0, centre - half)), max(value, min(1.0, centre + half))


def wilson_error(value: float, n: float) -> float:
    """Half of Wilson's interval, over z. With a mean of values between 0 and 1 it is an upper bound."""
    return math.sqrt(value * (1 - value) / n + (Z / (2 * n)) ** 2) / (1 + Z**2 / n)


def agresti_min_error(differences: Values, n: float) -> float:
    """Standard error of the mean of paired `differences` between -1 and 1, of n independent pairs.

    Half a pair is added to each of right and right, right and wrong, wrong and right, wrong and wrong (Agresti and Min
    2005, Statistics in Medicine 24, 729-740).
    """
    shifted = n * differences.mean() / (n + 2)
    variance = (n * (differences**2).mean() + 1) / (n + 2) - shifted**2
    return math.sqrt(variance / (n + 2))


def _error(residuals: Values, groups: Groups, scale: float) -> tuple[float | None, Method | None]:
    """Standard error of a mean whose items deviate by `residuals` [n], and how it was estimated; None for one item."""
    if len(residuals) < 2:
        return None, None
    sums = np.bincount(groups, residuals)
    stderr = math.sqrt(float((sums**2).sum()) * len(sums) / (len(sums) - 1)) / len(residuals)
    return (0.0 if stderr <= _ROUNDING * scale else stderr), "sample" if len(sums) == len(residuals) else "clustered"


def _effective_n(residuals: Values, groups: Groups) -> float:
    """How many independent items are worth as much as these: n over the design effect, which counts as at least 1.

    Where groups do not differ, the design effect is unknown, and each group counts as one item.
    """
    sums = np.bincount(groups, residuals)
    alone, together = float((residuals**2).sum()), float((sums**2).sum())
    if together <= _ROUNDING * alone:
        return len(sums)
    return len(residuals) * min(1.0, alone / together)


def _influence(values: Values) -> Values | None:
    """[n] each item's pull on the mean of the valid items; None if there are none."""
    valid = ~np.isnan(values)
    if not valid.any():
        return None
    return np.where(valid, values - np.nanmean(values), 0.0) / valid.mean()


def ratio_error(sums: Values, sizes: Values) -> float:
    """Standard error of a mean over tokens, from the sum [n] and the number of tokens [n] of each item; nan for n = 1.

    The tokens of an item depend on one another: this is the error of a ratio of sums over items.
    """
    n, mean = len(sums), sums.sum() / sizes.sum()
    return float(np.sqrt(n / (n - 1) * ((sums - mean * sizes) ** 2).sum()) / sizes.sum()) if n > 1 else math.nan


def gaps_closed(
    arms: Mapping[str, Values], base: Values, tuned: Values, design: Design = INDEPENDENT, *, seed: int = 0
) -> dict[str, Ratio]:
    """(arm - base) / (tuned - base) of mean values, with a paired percentile bootstrap interval over items (groups).

    The formula is the same for metrics where lower is better. Undefined, with the reason, where tuned - base is 0 or
    smaller than 2 of its paired standard errors (noise), has no standard error, or where tuned is worse than base.
    All arms share the same resamples. Liu et al. 2024 (arXiv 2401.08565), section 3.

    The arrays `base` and `tuned` themselves close exactly 0 and 1. Another arm for which every resample gives the same
    ratio gets the delta method's interval, with Agresti and Min's error of the arm's difference to that ratio.
    """
    why = no_gap(base, tuned, design)
    if why is not None:
        return {name: Ratio(None, why=why) for name in arms}
    stacked = np.stack([base, tuned, *arms.values()])
    groups = design.groups_of(np.full(stacked.shape[1], True))
    point = _ratios(_means(stacked, np.ones((1, stacked.shape[1]))))[0]
    counts = _resamples(len(np.unique(groups)), seed)
    resampled = np.concatenate([_ratios(_means(stacked, drawn[:, groups])) for drawn in counts])
    gaps = {}
    for i, (name, arm) in enumerate(arms.items()):
        exact = arm is base or arm is tuned
        gap = _with_interval(point[i], resampled[:, i], exact=exact)
        gaps[name] = gap if exact or not _is_point(gap) else _at_the_edge(gap, arm, base, tuned, design)
    return gaps


def no_gap(base: Values, tuned: Values, design: Design = INDEPENDENT) -> str | None:
    """Why there is no gap between base and tuned to speak of; None if there is one."""
    gap = paired_difference(tuned, base, design)
    if gap.value is None or gap.n == 0:
        return "base and tuned share no valid item"
    if gap.value == 0:
        return "tuned − base = 0"
    if gap.n == 1:
        return f"tuned − base = {gap.value:.3g} on a single item: no standard error"
    said = f"tuned − base = {gap.value:.3g}" + ("" if gap.stderr is None else f" ± {gap.stderr:.2g}")
    if gap.stderr is not None and abs(gap.value) < NOISE * gap.stderr:
        return f"{said}: inside noise (less than {NOISE:g} standard errors)"
    if (gap.value > 0) != design.higher_is_better:
        return f"{said}: tuned is worse than base"
    return None


def relative_performance(arm: Estimate, tuned: Estimate) -> Ratio:
    """arm / tuned, what Fan et al. 2024 (arXiv 2406.15480) print; below 1 is better where lower is better."""
    if arm.value is None or tuned.value is None:
        return Ratio(None, why="no valid item")
    if tuned.value == 0:
        return Ratio(None, why="tuned = 0")
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


def _with_interval(value: float, resampled: NDArray[np.float64], *, exact: bool) -> Ratio:
    """The ratio with its percentile interval over the resamples where it is defined."""
    if math.isnan(value):
        return Ratio(None, why="no valid item")
    with np.errstate(invalid="ignore"):
        tail = 50 * (1 - CONFIDENCE)
        low, high = np.percentile(resampled[~np.isnan(resampled)], [tail, 100 - tail])
    if not (math.isfinite(low) and math.isfinite(high)):
        return Ratio(float(value), why="tuned equals base in too many resamples for an interval")
    return Ratio(float(value), (float(low), float(high)), method="exact" if exact else "bootstrap")


def _is_point(gap: Ratio) -> bool:
    """Whether the bootstrap found no variation."""
    return gap.interval is not None and math.isclose(*gap.interval, rel_tol=_ROUNDING, abs_tol=_ROUNDING)


def _at_the_edge(gap: Ratio, arm: Values, base: Values, tuned: Values, design: Design) -> Ratio:
    """The interval of a ratio that every resample gives."""
    assert gap.value is not None
    whole = float(np.nanmean(tuned) - np.nanmean(base))
    residuals = arm - base - gap.value * (tuned - base)
    valid = ~np.isnan(residuals)
    if not design.fraction or not valid.any():
        return Ratio(gap.value, why="every resample gives the same ratio: no interval")
    error = agresti_min_error(residuals[valid], len(np.unique(design.groups_of(valid)))) / abs(whole)
    return Ratio(gap.value, (gap.value - Z * error, gap.value + Z * error), method="agresti-min")
