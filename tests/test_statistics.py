"""Means, paired differences and the gap closed, against scipy, brute force and published figures."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from proxytune.experiment import statistics
from proxytune.experiment.statistics import (
    as_values,
    gaps_closed,
    mean,
    no_gap,
    paired_difference,
    relative_performance,
)


def draws(n: int, *chances: float, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [(rng.random(n) < chance).astype(float) for chance in chances]


def test_mean_and_standard_error_equal_scipys():
    values = np.random.default_rng(1).normal(size=57)
    estimate = mean(values)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.stderr == pytest.approx(stats.sem(values))
    assert (estimate.n, estimate.n_invalid) == (57, 0)


def test_invalid_items_are_left_out_and_counted():
    estimate = mean(as_values([1.0, None, 0, True, math.nan, math.inf]))
    assert (estimate.value, estimate.n, estimate.n_invalid) == (pytest.approx(2 / 3), 3, 3)


def test_one_item_has_no_standard_error_and_none_has_no_mean():
    assert mean(as_values([0.5])).stderr is None
    assert mean(as_values([0.5])).value == 0.5
    assert mean(as_values([None])).value is None
    assert mean(as_values([])).value is None


def test_paired_difference_equals_the_standard_error_of_the_differences():
    a, b = draws(80, 0.6, 0.4)
    difference = paired_difference(a, b)
    assert difference.value == pytest.approx((a - b).mean())
    assert difference.stderr == pytest.approx(stats.sem(a - b))


def test_paired_difference_with_invalid_items_is_of_the_means_shown_and_its_error_is_the_bootstraps():
    a, b = draws(400, 0.7, 0.4)
    a[::7], b[::5] = math.nan, math.nan
    difference = paired_difference(a, b)
    assert difference.value == pytest.approx(np.nanmean(a) - np.nanmean(b))
    index = np.random.default_rng(0).integers(0, 400, (4000, 400))
    spread = np.std(np.nanmean(a[index], axis=1) - np.nanmean(b[index], axis=1))
    assert difference.stderr == pytest.approx(spread, rel=0.05)


def test_gap_interval_equals_scipys_paired_percentile_bootstrap(monkeypatch):
    arm, base, tuned = draws(150, 0.5, 0.2, 0.6)

    def gap(arm, base, tuned, axis=-1):
        arm, base, tuned = (x.mean(axis=axis) for x in (arm, base, tuned))
        return (arm - base) / (tuned - base)

    reference = stats.bootstrap(
        (arm, base, tuned),
        gap,
        paired=True,
        vectorized=True,
        n_resamples=statistics.RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(3),
    ).confidence_interval
    ours = gaps_closed({"arm": arm}, base, tuned, seed=3)["arm"]
    assert ours.value == pytest.approx(gap(arm, base, tuned))
    assert ours.interval == pytest.approx((reference.low, reference.high))
    monkeypatch.setattr(statistics, "_CHUNK", 1000)
    assert gaps_closed({"arm": arm}, base, tuned, seed=3)["arm"] == ours


def test_gap_interval_with_invalid_items_equals_a_loop():
    arm, base, tuned = draws(40, 0.5, 0.1, 0.8)
    arm[3], base[5:9], tuned[[0, 5]] = math.nan, math.nan, math.nan
    rng = np.random.default_rng(0)
    loop = []
    for _ in range(statistics.RESAMPLES):
        index = rng.integers(0, 40, 40)
        a, b, t = (np.nanmean(x[index]) for x in (arm, base, tuned))
        loop.append((a - b) / (t - b))
    expected = tuple(np.percentile(loop, [2.5, 97.5]))
    assert gaps_closed({"arm": arm}, base, tuned)["arm"].interval == pytest.approx(expected)


def test_interval_covers_the_true_gap_about_95_times_in_100(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 500)
    truth, hits, trials = (0.6 - 0.3) / (0.8 - 0.3), 0, 200
    for seed in range(trials):
        uniform = np.random.default_rng(seed).random(150)
        base, arm, tuned = ((uniform < p).astype(float) for p in (0.3, 0.6, 0.8))
        low, high = gaps_closed({"arm": arm}, base, tuned, seed=seed)["arm"].interval or (0.0, 0.0)
        hits += low <= truth <= high
    assert 0.90 * trials <= hits <= 0.99 * trials


def test_base_closes_nothing_and_tuned_everything():
    base, tuned = draws(60, 0.1, 0.9)
    gaps = gaps_closed({"base": base, "tuned": tuned}, base, tuned)
    assert (gaps["base"].value, gaps["base"].interval) == (0.0, (0.0, 0.0))
    assert (gaps["tuned"].value, gaps["tuned"].interval) == (1.0, (1.0, 1.0))


def test_lower_is_better_uses_the_same_formula():
    arm, base, tuned = draws(200, 0.3, 0.7, 0.1)
    lower = gaps_closed({"arm": arm}, base, tuned, higher_is_better=False)["arm"]
    flipped = gaps_closed({"arm": 1 - arm}, 1 - base, 1 - tuned)["arm"]
    assert lower.value == pytest.approx(flipped.value)
    assert lower.interval == pytest.approx(flipped.interval)


@pytest.mark.parametrize(
    ("base", "tuned", "higher", "why"),
    [
        ([0, 1, 0, 1], [1, 0, 1, 0], True, "tuned − base = 0"),
        ([0, 1, 0, 1], [1, 0, 1, 1], True, "inside noise"),
        ([0], [1], True, "single item"),
        ([0] * 9, [1] * 9, False, "worse"),
        ([1] * 9, [0] * 9, True, "worse"),
        ([None, 1], [1, None], True, "no valid item"),
        ([None, None], [1, 0], True, "no valid item"),
        ([], [], True, "no valid item"),
    ],
)
def test_gap_is_undefined_and_says_why(base, tuned, higher, why):
    base, tuned = as_values(base), as_values(tuned)
    assert why in (no_gap(base, tuned, higher_is_better=higher) or "")
    gap = gaps_closed({"arm": base}, base, tuned, higher_is_better=higher)["arm"]
    assert (gap.value, gap.interval) == (None, None)
    assert why in (gap.why or "")


def test_noise_rule_is_two_paired_standard_errors():
    base = np.zeros(100)
    for wins, noisy in ((3, True), (4, False)):
        tuned = base.copy()
        tuned[:wins] = 1.0
        assert (wins / 100 < 2 * stats.sem(tuned - base)) == noisy
        assert ("noise" in (no_gap(base, tuned) or "")) == noisy


def test_arm_without_a_valid_item_has_no_gap_though_others_have():
    base, tuned = draws(50, 0.1, 0.9)
    gaps = gaps_closed({"mute": np.full(50, math.nan), "base": base}, base, tuned)
    assert (gaps["mute"].value, gaps["mute"].why) == (None, "no valid item")
    assert gaps["base"].value == 0.0


def test_relative_performance_and_where_it_is_undefined():
    half, full, nothing = mean(as_values([0, 1])), mean(as_values([1, 1])), mean(as_values([0, 0]))
    assert relative_performance(half, full).value == 0.5
    assert relative_performance(half, nothing).why == "tuned = 0"
    assert relative_performance(half, mean(as_values([None]))).why == "no valid item"


def test_mean_gap_of_the_published_figures():
    """Liu et al. 2024: 91.1 % and 88.1 % are means over tasks of (proxy - base) / (tuned - base)."""
    published = {
        0.910543: [
            (2.111801, 83.354037, 87.329193),
            (0.0659591, 0.2638362, 0.3244882),
            (0.7035714, 0.0014286, 0.0003571),
            (0.3857868, 0.5661765, 0.6156671),
            (0.4908201, 0.8200734, 0.8041616),
        ],
        0.880673: [
            (3.726708, 87.950311, 90.372671),
            (0.0962851, 0.3351024, 0.5178165),
            (0.6735714, 0.0, 0.0),
            (0.4231312, 0.5919118, 0.6825980),
            (0.5385557, 0.8506732, 0.7955936),
        ],
    }
    for expected, rows in published.items():
        gaps = []
        for base, proxy, tuned in rows:
            arm = {"proxy": np.full(2, proxy)}
            closed = gaps_closed(arm, np.full(2, base), np.full(2, tuned), higher_is_better=tuned > base)["proxy"]
            gaps.append(closed.value)
        assert np.mean(gaps) == pytest.approx(expected, abs=1e-6)


values = st.lists(st.floats(-100, 100) | st.none(), min_size=2, max_size=30)


@settings(max_examples=60, deadline=None)
@given(values, st.floats(-5, 5), st.floats(0.1, 10))
def test_means_move_and_scale_with_their_values(items, shift, scale):
    plain, moved = mean(as_values(items)), mean(as_values(items) * scale + shift)
    assert (plain.n, plain.n_invalid) == (moved.n, moved.n_invalid)
    if plain.value is not None:
        assert moved.value == pytest.approx(plain.value * scale + shift, abs=1e-6)
    if plain.stderr is not None:
        assert moved.stderr == pytest.approx(plain.stderr * scale, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(-3, 3), st.floats(0.1, 5))
def test_gap_does_not_depend_on_the_metrics_unit_or_origin(seed, shift, scale):
    arm, base, tuned = draws(30, 0.5, 0.1, 0.9, seed=seed)
    plain = gaps_closed({"arm": arm}, base, tuned)["arm"]
    moved = gaps_closed({"arm": arm * scale + shift}, base * scale + shift, tuned * scale + shift)["arm"]
    assert (plain.value is None) == (moved.value is None)
    if plain.value is not None and plain.interval and moved.interval:
        assert moved.value == pytest.approx(plain.value, abs=1e-6)
        assert moved.interval == pytest.approx(plain.interval, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(values)
def test_difference_of_an_arm_to_itself_is_exactly_nothing(items):
    a = as_values(items)
    difference = paired_difference(a, a)
    assert difference.value in (0.0, None)
    assert difference.stderr in (0.0, None)
