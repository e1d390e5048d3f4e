"""The machinery under the rules: calculus, search, batching, edges. What the rules are: test_rules.py."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from proxytune.fusion import MatchKL, Static, logits, match_kl
from proxytune.fusion.solvers import tilt as tilts
from proxytune.fusion.solvers.joint import NEARLY, Iterate, _step, descend
from proxytune.fusion.solvers.search import (
    End,
    Start,
    _sides,
    _towards,
    best_point,
    grid_search,
    last_step,
    line_search,
    polish,
    run,
)
from proxytune.fusion.solvers.tilt import Tilt, _sum

EXACT = MatchKL()


def trio(seed: int, T: int, *shape: int, change: float = 2.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    common = torch.randn(*shape, generator=g)
    base, antiexpert = (3 * common + torch.randn(*shape, generator=g) for _ in range(2))
    return base, antiexpert + change * torch.randn(T, *shape, generator=g), antiexpert


def kl(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    a, b = a.log_softmax(-1), b.log_softmax(-1)
    return (a.exp() * (a - b)).masked_fill(a.isneginf(), 0.0).sum(-1)


def definition(logits: torch.Tensor, d: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Both divergences [2, n] for d [T, n, V] and w [T, n], in the precision of the arguments."""
    moved = logits + (w[..., None] * d).sum(0)
    return torch.stack([kl(moved, logits), kl(logits, moved)])


def loss_float64(base, experts, antiexpert, weights) -> torch.Tensor:
    """L [n] for base and antiexpert [n, V], experts [T, n, V] and weights [T, n] or one number; -inf masks a token."""
    base, experts, antiexpert = base.double(), experts.double(), antiexpert.double()
    weights = torch.as_tensor(weights).double().expand(experts.shape[:-1])
    unknown = experts.isneginf() | antiexpert.isneginf()
    known, tuned = (
        antiexpert.expand_as(experts).masked_fill(unknown, -torch.inf),
        experts.masked_fill(unknown, -torch.inf),
    )
    targets = torch.stack([kl(tuned, known), kl(known, tuned)])
    value = definition(base, (experts - antiexpert).masked_fill(unknown, 0.0), weights)
    return (value[:, None] - targets).square().sum((0, 1))


# Calculus


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.floats(-2, 2), st.floats(0.1, 6))
def test_divergences_and_their_derivatives_along_one_expert(seed, weight, change):
    base, experts, antiexpert = trio(seed, 1, 4, 11, change=change)
    d = experts - antiexpert
    value, first, second = Tilt(base, d, reach=2.0).line(torch.full((1, 4), weight)).split(2)
    w = torch.full((1, 4), weight, dtype=torch.float64, requires_grad=True)
    expected = definition(base.double(), d.double(), w)
    torch.testing.assert_close(value.double(), expected.detach(), rtol=1e-3, atol=1e-5)
    for i in range(2):
        (slope,) = torch.autograd.grad(expected[i].sum(), w, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), w, retain_graph=True)
        torch.testing.assert_close(first[i].double(), slope[0].detach(), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(second[i].double(), bend[0], rtol=1e-3, atol=2e-2)


def test_gradients_along_several_experts():
    base, experts, antiexpert = trio(1, 3, 6, 20)
    d = experts - antiexpert
    weights = torch.rand(3, 6, generator=torch.Generator().manual_seed(2)) * 2
    value, gradient = Tilt(base, d, reach=2.0).gradients(weights).split([2, 6])
    gradient = gradient.view(2, 3, 6)
    w = weights.double().requires_grad_()
    expected = definition(base.double(), d.double(), w)
    torch.testing.assert_close(value.double(), expected.detach(), rtol=1e-4, atol=1e-5)
    for i in range(2):
        (slope,) = torch.autograd.grad(expected[i].sum(), w, retain_graph=True)
        torch.testing.assert_close(gradient[i].double(), slope, rtol=1e-4, atol=1e-4)


def test_divergences_are_exactly_zero_where_nothing_moves():
    base, experts, antiexpert = trio(3, 2, 5, 1000)
    tilt = Tilt(base, experts - antiexpert, reach=2.0)
    assert torch.equal(tilt.divergences(torch.zeros(2, 5)), torch.zeros(2, 5))


def test_rows_of_extreme_logits_are_the_same_in_parts(monkeypatch):
    base, experts, antiexpert = trio(22, 1, 6, 40)
    tilt = Tilt(base * torch.logspace(0, 3, 6)[:, None], 30 * (experts - antiexpert), reach=2.0)
    assert tilt.extreme is not None
    whole = tilt.divergences(torch.full((1, 6), 1.5))
    for module in (logits, tilts):
        monkeypatch.setattr(module, "CACHED", 2 * 40)
    assert torch.equal(tilt.divergences(torch.full((1, 6), 1.5)), whole)


# Search


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.floats(0.1, 8), st.sampled_from([(0.0, 2.0), (0.0, 5.0), (0.5, 2.5), (-2.0, 0.0)]))
def test_elimination_finds_the_best_point_with_few_evaluations(seed, change, bounds):
    base, experts, antiexpert = trio(seed, 1, 16, 13, change=change)
    d = experts[0] - antiexpert
    points = torch.tensor(MatchKL(*bounds).points)
    points = points if bounds[0] >= 0 else points.flip(0)
    target = definition(antiexpert, d[None], torch.ones(1, 16))
    tilt = Tilt(base, d[None], reach=5.0)
    losses = torch.stack([(tilt.divergences(p.expand(1, 16)) - target).square().sum(0) for p in points])
    with mock.patch.object(Tilt, "divergences", autospec=True, side_effect=Tilt.divergences) as asked:
        starts = run([best_point(goal, points.tolist()) for goal in target.T.tolist()], tilt, Tilt.divergences)
    torch.testing.assert_close(torch.tensor([start.loss for start in starts]), losses.amin(0))
    for row, start in enumerate(starts):
        place = points.tolist().index(start.best)
        torch.testing.assert_close(losses[place, row], losses[:, row].amin())
        ends = points[max(place - 1, 0)].item(), points[min(place + 1, len(points) - 1)].item()
        assert (start.low, start.high) == (min(ends), max(ends))
        assert start.low <= start.w <= start.high
    assert sum(call.args[1].shape[1] for call in asked.call_args_list) < 0.6 * 16 * len(points)


def answered(search, of) -> tuple[object, list[float]]:
    """What a search for one weight finds that is sent `of(w)` for each w, and the weights it asks for."""
    asked, values = [], None
    while True:
        try:
            ((w,), values) = search.send(values), None
        except StopIteration as end:
            return end.value, asked
        asked.append(w)
        values = of(w)


def test_points_are_searched_on_each_side_of_zero_that_has_any():
    assert _sides([-1.0, 0.0, 0.5, 1.0]) == [[0.0, -1.0], [0.0, 0.5, 1.0]]
    assert _sides([0.0, 1.0, 2.0]) == [[0.0, 1.0, 2.0]]
    assert _sides([-2.0, -1.0, 0.0]) == [[0.0, -1.0, -2.0]]
    assert _sides([0.5, 1.0]) == [[0.5, 1.0]] and _sides([-1.0]) == [[-1.0]]


@pytest.mark.parametrize(
    ("here", "there"),
    [((0.0, 0.0), (3.0, 4.0)), ((1.0, 2.0), (0.5, 7.0)), ((1.5, 1.0), (1.8, 1.4)), ((2.0, 2.0), (2.0, 2.0))],
)
def test_the_share_of_the_way_that_comes_nearest_to_the_target(here, there):
    shares = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    for target in ((2.0, 1.0), (-5.0, 0.0), (9.0, 9.0), (1.0, 5.0)):
        away = [h + shares * (t - h) - goal for h, t, goal in zip(here, there, target, strict=True)]
        nearest = shares[(away[0] ** 2 + away[1] ** 2).argmin()].item()
        assert _towards(target, here, there) == pytest.approx(nearest, abs=1e-4)


@pytest.mark.parametrize("narrow", [True, False])
def test_a_short_newton_step_is_the_last_where_differences_are_small(narrow):
    """Both divergences are w^2; the target is theirs at 1/2."""
    start = Start(0.502, 0.0, 1.0, 1.0, 2.0)
    end, asked = answered(polish((0.25, 0.25), start, narrow), lambda w: (w * w, w * w, 2 * w, 2 * w, 2.0, 2.0))
    if narrow:
        assert (len(asked), end.w) == (1, 0.502)
    else:
        assert 2 <= len(asked) <= 4 and end.w == pytest.approx(0.5, abs=1e-6)
    assert (end.newton is not None) == narrow and end.loss == pytest.approx(2 * (end.w**2 - 0.25) ** 2)


@pytest.mark.parametrize("narrow", [True, False])
def test_without_a_curvature_to_trust_the_interval_is_halved_to_a_millionth(narrow):
    start = Start(0.66, 0.6, 0.8, 0.66, 1.0)
    end, asked = answered(polish((0.7, 0.0), start, narrow), lambda w: (w, 0.0, 1.0, 0.0, -1e9 * (w - 0.7), 0.0))
    assert end.w == pytest.approx(0.7, abs=2e-5) and 10 < len(asked) <= 20


@pytest.mark.parametrize(("further", "taken"), [(-1e-3, True), (9e-6, True), (1.2e-5, False), (0.5, False)])
def test_a_last_step_counts_unless_it_ends_further_from_the_target_than_by_rounding(further, taken):
    end = End(w=0.4, loss=0.09, newton=0.6)
    found, asked = answered(last_step((1.0, 2.0), end), lambda w: (1.0, 2.0 + 0.3 + further))
    assert asked == [0.6] and found == (pytest.approx((0.6, (0.3 + further) ** 2)) if taken else (0.4, 0.09))
    assert answered(last_step((1.0, 2.0), End(0.4, 0.09)), None) == ((0.4, 0.09), [])


def test_about_three_of_the_points_are_evaluated():
    base, experts, antiexpert = (x.double() for x in trio(20, 1, 64, 200, change=1.0))
    d, evaluated = experts - antiexpert, 0
    targets = definition(antiexpert, d, torch.ones(1, 64)).T.tolist()
    for i, target in enumerate(targets):
        row = base[i : i + 1], d[:, i : i + 1]
        search = best_point(target, EXACT.points)
        evaluated += len(
            answered(search, lambda w, row=row: definition(*row, torch.tensor([[w]])).flatten().tolist())[1]
        )
    assert evaluated < 3.6 * 64


def test_no_point_is_evaluated_twice_where_zero_is_none_of_them():
    start, asked = answered(best_point((0.01, 0.01), [0.5, 1.0]), lambda w: (w * w, w * w))
    assert (asked, start.best) == ([1.0, 0.5], 0.5)


def test_one_step_polishes_most_rows_where_differences_are_small():
    base, experts, antiexpert = trio(20, 1, 64, 200, change=1.0)
    d = experts - antiexpert
    target = definition(antiexpert, d, torch.ones(1, 64))
    with mock.patch.object(Tilt, "line", autospec=True, side_effect=Tilt.line) as asked:
        line_search(Tilt(base, d, reach=2.0), target, torch.tensor(EXACT.points))
    assert sum(call.args[1].shape[1] for call in asked.call_args_list) < 1.5 * 64


def test_a_joint_search_ends_where_the_loss_hardly_falls_any_more():
    """Divergences w and w, of which the first should be 0 and the second 1."""
    (w, loss), asked = answered(descend((0.0, 1.0), [0.2], 0.0, 2.0), lambda w: (w, w, 1.0, 1.0))
    assert (w[0], loss) == pytest.approx((0.5, 0.5), abs=1e-3) and len(asked) <= 4
    assert len(answered(descend((0.2, 0.2), [0.2], 0.0, 2.0), lambda w: (w, w, 1.0, 1.0))[1]) == 1, "it is there"
    assert len(answered(descend((-1.0, 0.0), [0.0], 0.0, 2.0), lambda w: (w, w, 1.0, 1.0))[1]) <= 10, "it is held"


# base, expert - antiexpert, antiexpert; where L has its local minima, and which of them is the lower one
TWO_MINIMA = [
    (
        [-0.457, 6.276, 2.682, 8.334, 8.122],
        [6.593, -0.466, -6.95, -2.655, -3.048],
        [0.55, -1.523, 1.475, -1.329, -0.329],
        (1.0, 1.88),
        0,
    ),
    (
        [10.654, -3.074, -6.538, 1.527, -6.47],
        [-3.722, -9.417, 5.966, 11.186, 8.397],
        [-3.841, 2.882, -1.006, 1.461, 1.253],
        (0.63, 1.47),
        1,
    ),
]


@pytest.mark.parametrize(("base", "d", "antiexpert", "minima", "lowest"), TWO_MINIMA)
def test_of_two_minima_the_lower_one_is_found(base, d, antiexpert, minima, lowest):
    base, d, antiexpert = (torch.tensor([x]) for x in (base, d, antiexpert))
    alphas = torch.linspace(0, 2, 2001)
    losses = torch.cat([loss_float64(base, (antiexpert + d)[None], antiexpert, alpha) for alpha in alphas])
    dips = [a for a, x, y, z in zip(alphas[1:], losses, losses[1:], losses[2:], strict=False) if y < x and y < z]
    assert [a.item() for a in dips] == pytest.approx(minima, abs=0.01)
    alpha = EXACT.fuse(base, (antiexpert + d)[None], antiexpert).weights[0]
    assert alpha.item() == pytest.approx(minima[lowest], abs=0.01)
    assert loss_float64(base, (antiexpert + d)[None], antiexpert, alpha).item() <= losses.min().item() * (1 + 1e-5)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.floats(0.01, 6), st.floats(0.2, 3))
def test_exact_is_never_above_the_grid_between_bounds_of_both_signs(seed, change, sharpness):
    base, experts, antiexpert = trio(seed, 1, 8, 30, change=change)
    rule = MatchKL(low=-1.0, high=1.5, step=0.25)
    alpha = rule.fuse(sharpness * base, experts, antiexpert).weights
    row = sharpness * base, experts, antiexpert
    grid = torch.stack([loss_float64(*row, point) for point in rule.points]).amin(0)
    assert (loss_float64(*row, alpha) <= grid * (1 + 1e-4) + 1e-7).all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(0, 10**6),
    st.integers(1, 3),
    st.integers(2, 200),
    st.tuples(*[st.floats(-1, 4)] * 3),
    st.sampled_from([0.0, 0.0, 0.1, 0.5]),
)
def test_exact_is_never_above_the_grid_however_far_apart_logits_are(seed, T, V, scales, masked):
    g = torch.Generator().manual_seed(seed)
    base, antiexpert, change = (
        10**scale * torch.randn(*shape, 64, V, generator=g) for scale, shape in zip(scales, [(), (), (T,)], strict=True)
    )
    models = base, antiexpert + change * torch.rand(64, 1, generator=g), antiexpert
    for model in models:  # the first token stays, so that each model knows one
        model[..., 1:].masked_fill_(torch.rand(64, V - 1, generator=g) < masked, -torch.inf)
    exact, grid = (loss_float64(*models, MatchKL(solver=s).fuse(*models).weights) for s in ("exact", "grid"))
    rounding = 1e-5 * max(model[model.isfinite()].abs().max() for model in models)
    assert (exact.sqrt() <= grid.sqrt() + rounding).all()


def narrow(seed: int, T: int, exponents: list[float]) -> list[torch.Tensor]:
    """64 rows, most of them all but certain of a token: the size of both models' logits, by how much each is certain,
    what the experts change, and a constant that they add are 10 to the `exponents`."""
    large, small, base_certain, small_certain, change, constant = (10**x for x in exponents)
    g = torch.Generator().manual_seed(seed)
    base, antiexpert = (size * torch.randn(64, 12, generator=g) for size in (large, small))
    for model, height in ((base, base_certain), (antiexpert, small_certain)):
        model += height * torch.eye(12)[torch.randint(12, (64,), generator=g)]
    moved = change * torch.randn(T, 64, 12, generator=g) * torch.rand(T, 64, 1, generator=g)
    return [base, antiexpert + moved + constant, antiexpert]


NARROW = st.tuples(*[st.floats(*ends) for ends in ((-1, 2), (-1, 4), (-1, 3), (-1, 4.5), (-2, 1.5), (-2, 3))])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), NARROW)
def test_the_loss_that_is_accepted_is_the_loss_at_the_weight_and_never_above_the_grids(seed, exponents):
    base, experts, antiexpert = narrow(seed, 1, exponents)
    tilt, small = (Tilt(x, experts - antiexpert, reach=2.0) for x in (base, antiexpert))
    target = small.divergences(torch.ones(1, 64))
    points = torch.tensor(EXACT.points)
    weights, loss = line_search(tilt, target, points)
    some = ~tilt.flat[0]
    evaluated = (tilt.divergences(weights) - target).square().sum(0)
    torch.testing.assert_close(loss[some], evaluated[some], rtol=1e-6, atol=0)
    _, grid = grid_search(tilt, target[:, None], points)
    rounding = 1e-5 + 1e-6 * tilt.range.abs().amax((0, 1))
    assert (evaluated.sqrt() <= grid.sqrt() + rounding)[some].all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 3), NARROW)
def test_exact_is_never_above_the_grid_nor_joint_above_one_expert_where_distributions_are_narrow(seed, T, exponents):
    models = narrow(seed, T, exponents)
    rules = MatchKL(solver="grid"), EXACT, MatchKL(experts="joint")
    grid, exact, joint = (rule.loss(*models, rule.fuse(*models).weights) for rule in rules)
    rounding = 1e-5 * (1 + max(model.abs().max() for model in models))
    assert (exact.sqrt() <= grid.sqrt() + rounding).all()
    assert (joint - NEARLY <= (exact.sqrt() + rounding).square()).all()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.floats(3, 5), st.floats(-2, 1.5))
def test_where_the_small_models_are_certain_of_one_token_the_base_stays(seed, height, change):
    """Both targets are 0, whatever the expert changes among the other tokens: no step towards them may be believed."""
    base, experts, antiexpert = trio(seed, 1, 16, 30, change=10**change)
    certain = torch.zeros(30).index_fill(0, torch.tensor([3]), 10**height)
    models = base, experts + certain, antiexpert + certain
    assert loss_float64(*models, 0.0).max() == 0
    assert loss_float64(*models, EXACT.fuse(*models).weights).max() < 1e-9


def test_a_minimum_between_zero_and_the_first_point_is_found():
    base, experts, antiexpert = trio(5, 1, 20, 30, change=3.0)
    weak = antiexpert + 0.01 * (experts[0] - antiexpert)  # moves the antiexpert a hundredth of the difference ...
    alpha = MatchKL(low=0.0, high=200.0, step=50.0).fuse(base, weak[None], antiexpert).weights[0]
    assert ((alpha > 0.3) & (alpha < 3)).all()  # ... which the best point, 0, leaves to the polishing


def test_the_small_pair_as_its_own_base_asks_for_the_expert():
    _, experts, antiexpert = trio(6, 1, 10, 500)
    fused = EXACT.fuse(antiexpert, experts, antiexpert)
    assert torch.equal(fused.weights, torch.ones(1, 10))
    torch.testing.assert_close(fused.logits, experts[0])


def test_joint_reaches_the_mean_target_that_one_expert_misses():
    base, experts, antiexpert = trio(7, 2, 40, 60)
    targets = torch.stack([kl(experts, antiexpert), kl(antiexpert, experts)])
    floor = (targets - targets.mean(1, keepdim=True)).square().sum((0, 1))
    above = []
    for rule in (EXACT, MatchKL(experts="joint")):
        above.append(rule.loss(base, experts, antiexpert, rule.fuse(base, experts, antiexpert).weights) - floor)
    single, joint = above
    assert (joint <= single + 1e-5).all()
    assert (joint < 1e-5).float().mean() > 2 * (single < 1e-5).float().mean()


def damped_step(jacobian: list[tuple[float, float]], gap: tuple[float, float], damping: float) -> torch.Tensor:
    """-J'(JJ' + damping tr(JJ'))^-1 gap by torch's solver."""
    J = torch.tensor(jacobian, dtype=torch.float64).T
    JJ = J @ J.T
    return -J.T @ torch.linalg.solve(JJ + damping * JJ.trace() * torch.eye(2), torch.tensor(gap, dtype=torch.float64))


@pytest.mark.parametrize("damping", [1e-3, 10.0])
def test_a_joint_step_leaves_weights_at_a_bound_that_would_leave_it(damping):
    gap, outwards, free, inwards = (0.1, -0.05), (0.1, -0.4), (0.2, 0.4), (-0.1, 0.4)  # slopes 0.03, 0, -0.03

    def step(*weights: tuple[float, tuple[float, float]]) -> list[float]:
        return _step(Iterate([w for w, _ in weights], 0.0, gap, [row for _, row in weights]), damping, 0.0, 2.0)

    assert step((0.0, outwards), (1.0, free), (2.0, inwards)) == [0.0, *step((1.0, free)), 0.0]
    for moved in ([(2.0, outwards), (1.0, free), (0.0, inwards)], [(1.0, outwards), (0.5, free), (1.5, inwards)]):
        assert step(*moved) == pytest.approx(damped_step([row for _, row in moved], gap, damping).tolist())


# Edges


@pytest.fixture
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("size", [2**15 - 1, 2**15, 2**17 + 5])
def test_the_sum_of_a_row_alone_is_that_of_the_row_among_others_on_several_threads(size, two_threads):
    rows = torch.rand(5, size, generator=torch.Generator().manual_seed(19))
    together = _sum(rows)
    assert all(torch.equal(_sum(rows[i : i + 1]), together[i : i + 1]) for i in range(5))


def test_rows_worked_on_together(monkeypatch):
    """As many whole rows as fit, and at least one: Qwen's 151,936 and Gemma's 262,144 tokens exceed a core's share."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    def cut(slices, n, V, device="cpu"):
        return [(part.start, part.stop) for part in slices(torch.empty(n, V, device=device))]

    assert cut(logits.cached, 2, 262_145) == [(0, 1), (1, 2)]
    assert cut(logits.cached, 2, 131_073) == [(0, 1), (1, 2)]
    assert cut(logits.cached, 5, 131_072) == [(0, 2), (2, 4), (4, 6)]
    assert cut(logits.cached, 3, 1, device="meta") == [(0, 3)]
    assert cut(logits.batches, 3, 2**21 + 1) == [(0, 1), (1, 2), (2, 3)]
    assert cut(logits.batches, 3, 2**20) == [(0, 2), (2, 4)]
    assert cut(logits.batches, 9, 2**21, device="meta") == [(0, 8), (8, 16)]
    assert cut(logits.batches, 0, 7) == []


@pytest.mark.parametrize(
    ("rule", "experts", "taken"),
    [
        (MatchKL(), 1, True),
        (MatchKL(), 3, True),
        (MatchKL(experts="joint"), 1, True),
        (MatchKL(experts="joint"), 2, False),
        (MatchKL(solver="grid"), 1, False),
        (MatchKL(high=0.0), 1, False),
        (MatchKL(high=1.0, step=1.0), 1, True),
        (MatchKL(high=1.27, step=0.01), 1, True),
        (MatchKL(high=1.28, step=0.01), 1, False),
    ],
    ids=repr,
)
def test_the_kernel_searches_on_a_gpu_what_it_can(rule, experts, taken, monkeypatch):
    monkeypatch.setattr(match_kl, "import_module", lambda name: name)
    monkeypatch.setattr(match_kl, "find_spec", lambda name: name)

    def kernel(device: str = "cuda", numbers: int = 1) -> object:
        return rule._kernel(SimpleNamespace(device=torch.device(device), numel=lambda: numbers), experts)

    assert kernel() == ("proxytune.fusion.solvers.kernel" if taken else None)
    assert kernel("cpu") is kernel(numbers=0) is None
    monkeypatch.setattr(match_kl, "find_spec", lambda name: None)
    assert kernel() is None


def test_the_kernel_is_given_rows_and_what_it_finds_has_the_shapes_of_the_logits(monkeypatch):
    base, experts, antiexpert = trio(18, 2, 3, 4, 13)
    plain = EXACT.fuse(base, experts, antiexpert)
    rows = base.flatten(0, 1), experts.flatten(1, 2), antiexpert.flatten(0, 1)
    found = EXACT.fuse(*rows)

    def fuse(*given):
        assert all(map(torch.equal, given[:3], rows)) and given[3] == EXACT.points
        return found

    monkeypatch.setattr(MatchKL, "_kernel", lambda *_: SimpleNamespace(fuse=fuse))
    fused = EXACT.fuse(base, experts, antiexpert)
    assert torch.equal(fused.logits, plain.logits) and torch.equal(fused.weights, plain.weights)


def test_a_model_that_masks_everything():
    base, experts, antiexpert = trio(14, 2, 3, 40)
    base[0] = -torch.inf
    antiexpert[1] = -torch.inf
    experts[0, 2] = -torch.inf
    fused = EXACT.fuse(base, experts, antiexpert)
    assert fused.logits[0].isneginf().all()
    assert torch.equal(fused.logits[1], base[1])
    assert not fused.weights.isnan().any()
    assert (fused.weights[:, 1] == 0).all()


def test_a_masked_token_is_as_good_as_no_token():
    base, experts, antiexpert = trio(15, 2, 10, 40)
    expected = EXACT.fuse(base, experts, antiexpert)
    pad = torch.nn.functional.pad
    one_masks = [pad(x, (0, 3), value=-torch.inf) for x in (base, experts, antiexpert)]
    fused = EXACT.fuse(*one_masks)
    torch.testing.assert_close(fused.weights, expected.weights, rtol=0, atol=1e-4)
    pair_masks = EXACT.fuse(one_masks[0], one_masks[1], pad(antiexpert, (0, 3), value=1.0))
    torch.testing.assert_close(pair_masks.weights, fused.weights, rtol=0, atol=1e-4)


@pytest.mark.parametrize("scale", [30.0, 300.0, 3000.0])
def test_logits_far_apart_stay_finite(scale):
    base, experts, antiexpert = (x * scale for x in trio(16, 1, 50, 20))
    fused = EXACT.fuse(base, experts, antiexpert)
    assert fused.logits.isfinite().all()
    grid = MatchKL(solver="grid").fuse(base, experts, antiexpert)
    losses = [loss_float64(base, experts, antiexpert, rule.weights) for rule in (fused, grid)]
    assert (losses[0] <= losses[1] * (1 + 1e-4)).all()


def test_an_expert_that_adds_a_constant_gets_the_smallest_weight():
    base, _, antiexpert = trio(17, 1, 10, 1000)
    for rule in (EXACT, MatchKL(solver="grid"), MatchKL(low=0.5, high=1.0), MatchKL(low=-1, high=1)):
        assert (rule.fuse(base, (antiexpert + 3.7)[None], antiexpert).weights == rule.low).all()


def test_an_expert_that_differs_where_the_base_masks_alone_gets_the_smallest_weight():
    base, _, antiexpert = trio(21, 1, 10, 50)
    base[:, 7] = -torch.inf
    expert = (antiexpert + 3.7).index_add(1, torch.tensor([7]), torch.full((10, 1), 5.0))
    for rule in (MatchKL(low=-1, high=1), MatchKL(low=-1, high=1, solver="grid")):
        assert (rule.fuse(base, expert[None], antiexpert).weights == -1).all()


def test_weights_may_come_from_a_config():
    config = OmegaConf.create({"weights": [0.5, 1], "low": 0})
    assert Static(config.weights) == Static((0.5, 1.0))
    assert hash(Static(config.weights)) == hash(Static((0.5, 1.0)))
    assert MatchKL(low=config.low) == MatchKL()
