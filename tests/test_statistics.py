"""Means, paired differences and the gap closed, against scipy, brute force and published figures."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from proxytune import statistics
from proxytune.statistics import (
    Design,
    as_values,
    gaps_closed,
    mean,
    no_gap,
    paired_difference,
    relative_performance,
    wilson,
)

FRACTION = Design(fraction=True)
Z = stats.norm.ppf(0.975)


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


@pytest.mark.parametrize(
    ("values", "fractions"),
    [([0, 1, None], True), ([None], True), ([0.5, 1.5], False), ([0.5, -0.5], False), ([2], False)],
)
def test_fractions_lie_between_0_and_1_both_included(values, fractions):
    assert statistics.are_fractions(as_values(values)) is fractions


def test_items_with_equal_labels_are_a_group():
    assert statistics.groups(["law", "art", "law", "music"]).tolist() == [1, 0, 1, 2]


def test_what_has_no_value_counts_its_items_nonetheless():
    alone = mean(as_values([None, None]))
    assert (alone.value, alone.n, alone.n_invalid) == (None, 0, 2)
    for a, b in (([None, None], [1, None]), ([1, None], [None, None])):
        difference = paired_difference(as_values(a), as_values(b))
        assert (difference.value, difference.n, difference.n_invalid) == (None, 0, 2)
    single = paired_difference(as_values([1, None, 0]), as_values([0, 1, None]))
    assert (single.value, single.stderr, single.stderr_method) == (0.0, None, None)
    assert (single.n, single.n_invalid) == (1, 2)
    a = as_values([1, 0, None])
    itself = paired_difference(a, a)
    assert (itself.value, itself.stderr, itself.stderr_method) == (0.0, 0.0, "exact")
    assert (itself.n, itself.n_invalid) == (2, 1)


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
    # 58 items lack a, 80 lack b, 12 both.
    assert (difference.n, difference.n_invalid) == (274, 126)
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


def test_there_are_ten_thousand_resamples_however_they_are_cut_into_chunks(monkeypatch):
    whole = np.concatenate(list(statistics._resamples(7, seed=0)))
    assert whole.shape == (10_000, 7)
    assert (whole.sum(1) == 7).all()
    for chunk in (1, 21, 70_000, 70_007):
        monkeypatch.setattr(statistics, "_CHUNK", chunk)
        assert np.array_equal(np.concatenate(list(statistics._resamples(7, seed=0))), whole)


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
    lower = gaps_closed({"arm": arm}, base, tuned, Design(higher_is_better=False))["arm"]
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
    for fraction in (True, False):
        design = Design(fraction=fraction, higher_is_better=higher)
        assert why in (no_gap(base, tuned, design) or "")
        gap = gaps_closed({"arm": base}, base, tuned, design)["arm"]
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


@pytest.mark.filterwarnings("error")
def test_an_interval_whose_end_is_infinite_is_left_out_without_a_warning():
    """In one resample of 27 tuned equals base, which is more than the interval leaves out on one side."""
    gap = gaps_closed({"all": np.ones(3)}, np.zeros(3), np.array([1.0, 1.0, 0.0]))["all"]
    assert (gap.value, gap.interval) == (1.5, None)
    assert gap.why == "tuned equals base in too many resamples for an interval"


@pytest.mark.filterwarnings("error")
def test_ratios_that_are_undefined_in_some_resamples_raise_no_warning():
    """In resamples of the last item alone tuned equals base: 0 / 0 for the one arm, 1 / 0 for the other."""
    base, tuned = np.zeros(4), np.array([1.0, 1.0, 1.0, 0.0])
    arms = {"none": np.zeros(4), "all": np.ones(4), "mute": np.full(4, math.nan)}
    gaps = gaps_closed(arms, base, tuned, FRACTION)
    assert [gap.value for gap in gaps.values()] == [0.0, pytest.approx(4 / 3), None]


def test_a_ratio_without_bound_in_more_resamples_than_the_interval_leaves_out_has_no_interval():
    """Of three items the third, where tuned equals base, is alone in one resample of 27; arm / 0 is infinite."""
    gap = gaps_closed({"all": np.ones(3)}, np.zeros(3), np.array([1.0, 1.0, 0.0]))["all"]
    assert (gap.value, gap.interval, gap.method) == (pytest.approx(1.5), None, None)
    assert gap.why == "tuned equals base in too many resamples for an interval"


@pytest.mark.parametrize(
    ("interval", "point"),
    [((1.0, 1.0 + 1e-10), False), ((1e6, 1e6 + 1e-7), True), ((0.0, 1e-13), True), ((0.0, 1e-10), False)],
)
def test_resamples_that_differ_by_rounding_are_the_same(interval, point):
    assert statistics._is_point(statistics.Ratio(1.0, interval)) == point


def test_relative_performance_and_where_it_is_undefined():
    half, full, nothing = mean(as_values([0, 1])), mean(as_values([1, 1])), mean(as_values([0, 0]))
    assert relative_performance(half, full).value == 0.5
    assert relative_performance(mean(as_values([1, 0, 0, 0])), half).value == 0.5
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
            better = Design(higher_is_better=tuned > base)
            closed = gaps_closed(arm, np.full(2, base), np.full(2, tuned), better)["proxy"]
            gaps.append(closed.value)
        assert np.mean(gaps) == pytest.approx(expected, abs=1e-6)


def test_the_error_of_a_mean_over_tokens_by_hand():
    values = np.random.default_rng(0).normal(size=30)
    assert statistics.ratio_error(values * 7, np.full(30, 7.0)) == pytest.approx(stats.sem(values))
    # Mean 3 / 6; residuals 1.5, 0 and -1.5, squares 4.5 in all: the root of 3 / 2 * 4.5, over 6 tokens.
    assert statistics.ratio_error(np.array([2.0, 1.0, 0.0]), np.array([1.0, 2.0, 3.0])) == pytest.approx(6.75**0.5 / 6)
    assert statistics.ratio_error(np.array([1.0, 3.0]), np.ones(2)) == pytest.approx(1.0)
    assert math.isnan(statistics.ratio_error(np.array([1.0]), np.ones(1)))


@pytest.mark.parametrize("n", [1, 2, 4, 5, 9, 24, 26, 40, 200])  # of 5, 9 and 26, rounding leaves the end outside
def test_wilsons_interval_equals_scipys(n):
    for right in range(n + 1):
        expected = stats.binomtest(right, n).proportion_ci(method="wilson")
        low, high = wilson(right / n, n)
        assert (low, high) == pytest.approx((expected.low, expected.high))
        assert 0 <= low <= right / n <= high <= 1


@pytest.mark.parametrize("n", [2, 4, 24, 200])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_items_that_are_all_right_or_all_wrong_have_the_error_of_wilsons_interval(value, n):
    estimate = mean(np.full(n, value), FRACTION)
    expected = stats.binomtest(int(n * value), n).proportion_ci(method="wilson")
    assert estimate.interval == pytest.approx((expected.low, expected.high))
    assert estimate.stderr == pytest.approx((expected.high - expected.low) / 2 / Z)
    assert (estimate.value, estimate.stderr_method) == (value, "wilson")
    almost = np.full(n, value)
    almost[0] = 1 - value
    assert 0 < estimate.stderr <= mean(almost, FRACTION).stderr == pytest.approx(stats.sem(almost))


def test_the_interval_of_a_small_sample_covers_the_truth_where_the_usual_one_does_not():
    """Exact coverage over all outcomes of 12 items, averaged over true proportions near the edge."""
    n, ours, usual, truths = 12, 0.0, 0.0, np.linspace(0.9, 0.99, 10)
    for truth in truths:
        for right in range(n + 1):
            items = np.arange(n) < right
            chance = stats.binom.pmf(right, n, truth)
            low, high = mean(items.astype(float), FRACTION).interval
            ours += chance * (low <= truth <= high)
            usual += chance * (abs(items.mean() - truth) <= Z * stats.sem(items))
    assert ours / len(truths) > 0.93
    assert usual / len(truths) < 0.7


def test_values_without_variation_have_an_upper_bound_between_0_and_1_and_no_error_otherwise():
    bounded, unknown = mean(np.full(9, 0.3), FRACTION), mean(np.full(9, 0.3))
    assert bounded.stderr >= math.sqrt(0.3 * 0.7 / 9) * 0.8
    assert (bounded.stderr_method, bounded.interval) == ("wilson", None)
    assert (unknown.stderr, unknown.stderr_method, unknown.value) == (None, None, pytest.approx(0.3))
    large = np.full(11, 3e8 + 0.1)
    assert large.mean() != large[0]  # by rounding
    assert mean(large).stderr is None


def grouped(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """120 items in 15 groups of different sizes, alike within a group."""
    rng = np.random.default_rng(seed)
    groups = rng.choice(15, 120)
    return (rng.random(120) < rng.random(15)[groups]).astype(float), groups


def test_the_error_of_grouped_items_equals_the_sum_over_all_pairs_of_a_group():
    """Miller 2024, equation 4, with the correction of G / (G - 1) for the number of groups."""
    values, groups = grouped()
    n, count, total = len(values), len(set(groups)), 0.0
    for i in range(n):
        for j in range(n):
            total += (values[i] - values.mean()) * (values[j] - values.mean()) * (groups[i] == groups[j])
    estimate = mean(values, Design(groups, fraction=True))
    assert estimate.stderr == pytest.approx(math.sqrt(total * count / (count - 1)) / n)
    assert estimate.stderr_method == "clustered"
    assert estimate.stderr > 1.3 * stats.sem(values)


def test_two_groups_by_hand():
    estimate = mean(np.array([1.0, 1.0, 0.0, 0.0]), Design(np.array([0, 0, 1, 1])))
    # Sums of 1 and -1: the root of (1 + 1) * 2 / (2 - 1), over 4 items.
    assert (estimate.stderr, estimate.stderr_method) == (0.5, "clustered")


@pytest.mark.parametrize(
    ("groups", "effective"),
    [
        # Residuals 0.4 and -0.6, squares 1.2 in all; sums of the groups 1.2 and -1.2, squares 2.88.
        ([0, 0, 0, 1, 1], 5 * 1.2 / 2.88),
        # Sums 0.8, -0.2 and -0.6, squares 1.04: groups that are more even than chance do not count for more.
        ([0, 0, 1, 1, 2], 5),
    ],
)
def test_wilsons_interval_takes_the_effective_number_of_items(groups, effective):
    estimate = mean(np.array([1.0, 1.0, 1.0, 0.0, 0.0]), Design(np.array(groups)))
    assert estimate.interval == pytest.approx(wilson(0.6, effective))


def test_repeated_questions_count_once():
    questions = np.array([1.0, 0.0, 1.0, 1.0, 0.0])
    repeated = mean(np.repeat(questions, 20), Design(np.repeat(np.arange(5), 20), fraction=True))
    once = mean(questions, FRACTION)
    assert repeated.stderr == pytest.approx(once.stderr)
    assert repeated.interval == pytest.approx(once.interval)
    right = mean(np.ones(100), Design(np.repeat(np.arange(5), 20), fraction=True))
    assert right.stderr == pytest.approx(mean(np.ones(5), FRACTION).stderr)


def test_groups_of_one_item_and_a_single_group_change_nothing():
    values, _ = grouped()
    for groups in (np.arange(120) * 7, np.full(120, 3)):
        assert mean(values, Design(groups, fraction=True)) == mean(values, FRACTION)


def test_groups_that_balance_within_themselves_are_not_certain():
    values, groups = np.tile([0.0, 1.0], 6), np.repeat(np.arange(6), 2)
    estimate = mean(values, Design(groups, fraction=True))
    assert estimate.stderr == pytest.approx(mean(np.array([0.0, 1.0] * 3), FRACTION).interval[1] / Z - 0.5 / Z)
    assert estimate.stderr_method == "wilson"


def test_invalid_items_of_a_group_are_left_out():
    values, groups = grouped()
    values[::5] = math.nan
    valid = ~np.isnan(values)
    estimate = mean(values, Design(groups, fraction=True))
    assert estimate.stderr == mean(values[valid], Design(groups[valid], fraction=True)).stderr


@pytest.mark.parametrize("n", [2, 4, 24, 200])
@pytest.mark.parametrize(("a", "b"), [(1.0, 0.0), (1.0, 1.0), (0.0, 1.0)])
def test_a_difference_without_variation_has_the_error_of_the_table_with_half_a_pair_more_in_each_cell(n, a, b):
    cells = dict.fromkeys([(1, 1), (1, 0), (0, 1), (0, 0)], 0.5)
    cells[(a, b)] += n
    total = sum(cells.values())
    only_a, only_b = cells[(1, 0)] / total, cells[(0, 1)] / total
    expected = math.sqrt((only_a + only_b - (only_a - only_b) ** 2) / total)
    difference = paired_difference(np.full(n, a), np.full(n, b), FRACTION)
    assert (difference.value, difference.stderr_method) == (a - b, "agresti-min")
    assert difference.stderr == pytest.approx(expected)
    assert paired_difference(np.full(n, a), np.full(n, b)).stderr is None


def test_the_paired_difference_of_grouped_items_equals_that_of_their_differences():
    (a, groups), (b, _) = grouped(0), grouped(1)
    difference = paired_difference(a, b, Design(groups, fraction=True))
    assert difference.stderr == pytest.approx(mean(a - b, Design(groups)).stderr)
    assert difference.stderr_method == "clustered"


def test_the_gap_of_grouped_items_equals_a_loop_over_resampled_groups(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 300)
    groups = np.repeat(np.arange(12), [1, 2, 3, 4, 5, 6] * 2)
    arm, base, tuned = draws(len(groups), 0.5, 0.1, 0.8)
    rng = np.random.default_rng(0)
    loop = []
    for _ in range(300):
        items = np.concatenate([np.flatnonzero(groups == group) for group in rng.integers(0, 12, 12)])
        a, b, t = (x[items].mean() for x in (arm, base, tuned))
        loop.append((a - b) / (t - b))
    gap = gaps_closed({"arm": arm}, base, tuned, Design(groups, fraction=True))["arm"]
    assert gap.interval == pytest.approx(tuple(np.percentile(loop, [2.5, 97.5])))
    assert gap.method == "bootstrap"


@pytest.mark.parametrize("n", [4, 40])
def test_a_gap_that_every_resample_gives_is_not_certain_unless_it_is_by_definition(n):
    base, tuned = np.zeros(n), np.ones(n)
    arms = {"base": base, "tuned": tuned, "like_base": base.copy(), "like_tuned": tuned.copy()}
    gaps = gaps_closed(arms, base, tuned, FRACTION)
    assert [gap.value for gap in gaps.values()] == [0.0, 1.0, 0.0, 1.0]
    assert (gaps["base"].interval, gaps["tuned"].interval) == ((0.0, 0.0), (1.0, 1.0))
    assert (gaps["base"].method, gaps["like_base"].method) == ("exact", "agresti-min")
    # The four cells of arm and tuned with half a pair more each: two pairs that differ, one each way.
    half = Z * math.sqrt(1 / (n + 2) / (n + 2))
    assert gaps["like_tuned"].interval == pytest.approx((1 - half, 1 + half))
    assert gaps["like_base"].interval == pytest.approx((-half, half))
    unknown = gaps_closed(arms, base, tuned)["like_tuned"]
    assert (unknown.value, unknown.interval) == (1.0, None)
    assert "same ratio" in (unknown.why or "")


@pytest.mark.parametrize("n", [4, 40])
def test_the_interval_of_such_a_gap_is_in_parts_of_the_whole_gap(n):
    base, arm, tuned = (np.full(n, value) for value in (0.2, 0.4, 0.6))
    gap = gaps_closed({"arm": arm}, base, tuned, FRACTION)["arm"]
    # No pair differs from half the gap; half a pair each way does.
    half = Z / (n + 2) / 0.4
    assert gap.value == pytest.approx(0.5)
    assert gap.interval == pytest.approx((0.5 - half, 0.5 + half))


values = st.lists(st.floats(-100, 100) | st.none(), min_size=2, max_size=30)


@settings(max_examples=60, deadline=None)
@given(values, st.floats(-5, 5), st.floats(0.1, 10))
def test_means_move_and_scale_with_their_values(items, shift, scale):
    plain, moved = mean(as_values(items)), mean(as_values(items) * scale + shift)
    assert (plain.n, plain.n_invalid) == (moved.n, moved.n_invalid)
    if plain.value is not None:
        assert moved.value == pytest.approx(plain.value * scale + shift, abs=1e-6)
    # None where values do not vary, which a shift may hide beneath its rounding.
    assert (moved.stderr or 0.0) == pytest.approx((plain.stderr or 0.0) * scale, abs=1e-6)


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
