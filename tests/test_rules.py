"""Rules against their definitions in plain float64: nothing here uses the calculus that the solver uses."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from proxytune.fusion import Fused, MatchKL, Static
from proxytune.fusion.arm import Arm
from proxytune.fusion.rule import INPUTS, fuse, inputs_of, try_out

V = 13
RULE_OBJECTS = [
    Static(0.7),
    Static((0.3, -1.2)),
    *(MatchKL(solver=s, experts=e, step=0.25) for s in ("exact", "grid") for e in ("one_at_a_time", "joint")),
]


def some_logits(seed: int, *shape: int, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(*shape, V, generator=torch.Generator().manual_seed(seed)) * scale


def trio(seed: int, T: int, *shape: int, change: float = 2.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    base, antiexpert = some_logits(seed, *shape), some_logits(seed + 1, *shape)
    return base, antiexpert + some_logits(seed + 2, T, *shape, scale=change), antiexpert


def named(seed: int, T: int, *shape: int) -> dict[str, torch.Tensor]:
    return dict(zip(INPUTS, trio(seed, T, *shape), strict=True))


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def kl(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (np.exp(a) * (a - b)).sum(-1)


def loss_by_definition(base, experts, antiexpert, weights) -> np.ndarray:
    """L of one row in float64 at weights [..., T]: Fan et al. 2024, from softmaxes and divergences."""
    base, experts, antiexpert = (np.asarray(x, dtype=np.float64) for x in (base, experts, antiexpert))
    p, q = log_softmax(base), log_softmax(antiexpert)
    fused = log_softmax(base + np.asarray(weights) @ (experts - antiexpert))
    return sum((kl(fused, p) - kl(q_t, q)) ** 2 + (kl(p, fused) - kl(q, q_t)) ** 2 for q_t in map(log_softmax, experts))


def one_at_a_time(T: int, points) -> np.ndarray:
    """Weights [T * G, T]: each expert at each of the points, the others at 0."""
    return np.concatenate([np.outer(points, one_hot) for one_hot in np.eye(T)])


def published(base, experts, antiexpert) -> np.ndarray:
    """The paper's search, one row: 21 points, one expert at a time, first minimum of all."""
    tried = one_at_a_time(len(experts), [i / 10 for i in range(21)])
    return tried[loss_by_definition(base, experts, antiexpert, tried).argmin()]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 3), st.floats(0.05, 4.0))
def test_grid_is_the_published_search(seed, T, change):
    base, experts, antiexpert = trio(seed, T, change=change)
    chosen = MatchKL(solver="grid").fuse(base, experts, antiexpert).weights.tolist()
    expected = published(base, experts, antiexpert)
    if chosen != pytest.approx(expected, abs=1e-6):  # two points may be equal up to rounding
        losses = [loss_by_definition(base, experts, antiexpert, w) for w in (chosen, expected)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3, abs=1e-6)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 3), st.floats(0.05, 4.0), st.floats(0.3, 6.0))
def test_exact_is_never_above_the_grid_nor_a_dense_search(seed, T, change, scale):
    base, experts, antiexpert = trio(seed, T, change=change)
    base = base * scale / 3
    weights = MatchKL().fuse(base, experts, antiexpert).weights.tolist()
    assert sum(w != 0 for w in weights) <= 1
    assert all(0 <= w <= 2 for w in weights)
    mine = loss_by_definition(base, experts, antiexpert, weights)
    grid = loss_by_definition(base, experts, antiexpert, published(base, experts, antiexpert))
    assert mine <= grid * (1 + 1e-4) + 1e-6
    dense = loss_by_definition(base, experts, antiexpert, one_at_a_time(T, np.linspace(0, 2, 401))).min()
    assert mine <= dense * (1 + 1e-3) + 1e-5


def test_loss_is_the_definition():
    base, experts, antiexpert = trio(9, 3, 8)
    weights = torch.rand(3, 8, generator=torch.Generator().manual_seed(1)) * 2
    losses = MatchKL().loss(base, experts, antiexpert, weights)
    for i in range(8):
        expected = loss_by_definition(base[i], experts[:, i], antiexpert[i], weights[:, i].tolist())
        assert losses[i].item() == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("solver", ["exact", "grid"])
def test_joint_with_one_expert_is_one_at_a_time(solver):
    base, experts, antiexpert = trio(10, 1, 20)
    results = [MatchKL(solver=solver, experts=e).fuse(base, experts, antiexpert) for e in ("joint", "one_at_a_time")]
    assert torch.equal(results[0].logits, results[1].logits)
    assert torch.equal(results[0].weights, results[1].weights)


@pytest.mark.parametrize("T", [2, 3])
def test_joint_is_no_worse_than_one_expert_and_about_as_good_as_a_general_optimiser(T):
    base, experts, antiexpert = trio(11, T, 12)
    joint = MatchKL(experts="joint").fuse(base, experts, antiexpert).weights.double()
    single = MatchKL().fuse(base, experts, antiexpert).weights.double()
    for i in range(12):
        row = base[i], experts[:, i], antiexpert[i]

        def loss(w, row=row):
            return loss_by_definition(*row, w)

        starts = itertools.product((0.2, 1.0, 1.8), repeat=T)
        best = min(minimize(loss, start, bounds=[(0, 2)] * T).fun for start in starts)
        mine = loss(joint[:, i].tolist())
        assert mine <= loss(single[:, i].tolist()) + 1e-5
        assert mine <= best * 1.02 + 1e-4


def test_joint_gives_equal_experts_equal_weights():
    base, experts, antiexpert = trio(12, 1, 6)
    weights = MatchKL(experts="joint").fuse(base, experts.expand(3, 6, V), antiexpert).weights
    torch.testing.assert_close(weights, weights[:1].expand_as(weights))


def test_joint_grid_searches_all_combinations():
    base, experts, antiexpert = trio(13, 2, 4)
    weights = MatchKL(solver="grid", step=0.5, experts="joint").fuse(base, experts, antiexpert).weights
    points = [0.0, 0.5, 1.0, 1.5, 2.0]
    for i in range(4):
        row = base[i], experts[:, i], antiexpert[i]
        best = min(itertools.product(points, repeat=2), key=lambda w, row=row: loss_by_definition(*row, w))
        assert tuple(weights[:, i].tolist()) == best


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Static(float("nan")), "Static.weights must be a finite number"),
        (lambda: Static(()), "Static.weights must be a finite number"),
        (lambda: Static("1"), "Static.weights must be a finite number"),
        (lambda: Static(True), "Static.weights must be a finite number"),
        (lambda: MatchKL(low=2, high=1), "low=2.0, high=1.0"),
        (lambda: MatchKL(low=float("inf")), "MatchKL.low must be a finite number"),
        (lambda: MatchKL(step=0), "MatchKL.step must be greater than 0"),
        (lambda: MatchKL(step=0.3), "must divide high - low"),
        (lambda: MatchKL(solver="newton"), "must be one of exact, grid"),
        (lambda: MatchKL(experts="all"), "must be one of one_at_a_time, joint"),
    ],
)
def test_bad_parameters_take_one_line(make, says):
    with pytest.raises(ValueError) as caught:
        make()
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_number_of_weights_and_wrong_shapes_are_refused():
    base, experts, antiexpert = trio(17, 3, 2)
    with pytest.raises(ValueError, match="has 2 numbers for 3 experts"):
        Static((1.0, 2.0)).fuse(base, experts, antiexpert)
    for rule in (Static(), MatchKL()):
        with pytest.raises(ValueError, match="logits must be base"):
            rule.fuse(base, experts, antiexpert[..., :-1])
    with pytest.raises(ValueError, match="logits must be base"):
        MatchKL().loss(base, experts, antiexpert[..., :-1], torch.ones(3, 2))
    with pytest.raises(ValueError, match=r"weights must be \[3, 2\] like the experts, got \[2, 3\]"):
        MatchKL().loss(base, experts, antiexpert, torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"joint grid of 41\^3 = 68921 points"):
        MatchKL(solver="grid", experts="joint", step=0.05).fuse(base, experts, antiexpert)


def test_the_grid_has_both_ends_and_no_drift():
    assert MatchKL().points == pytest.approx([i / 10 for i in range(21)], abs=1e-15)
    assert (MatchKL().points[0], MatchKL().points[-1]) == (0.0, 2.0)
    assert MatchKL(low=-1, high=1, step=0.5).points == (-1.0, -0.5, 0.0, 0.5, 1.0)
    assert MatchKL(low=0.3, high=0.9, step=0.2).points == pytest.approx((0.3, 0.5, 0.7, 0.9), abs=1e-15)
    assert MatchKL(low=0.7, high=0.7).points == (0.7,)


@pytest.mark.parametrize("steps", [1, 10, 1000])
def test_a_step_divides_the_range_up_to_a_millionth_of_a_step_or_of_all_steps(steps):
    for sign in (1, -1):
        assert len(MatchKL(high=1.0, step=1 / (steps * (1 + sign * 0.9e-6))).points) == steps + 1
        with pytest.raises(ValueError, match="must divide high - low = 1 into whole steps"):
            MatchKL(high=1.0, step=1 / (steps * (1 + sign * 1.1e-6)))
    assert MatchKL(high=0.9e-6 / steps, step=1 / steps).points == (0.0,)


def test_grids_have_a_largest_size():
    base, experts, antiexpert = trio(21, 4, 1)
    assert len(MatchKL(high=1.0, step=1e-4).points) == 10_001
    with pytest.raises(ValueError, match=r"makes 1e\+04 steps from low to high, of 10000 allowed"):
        MatchKL(high=1.0, step=1 / 10_001)
    MatchKL(solver="grid", experts="joint", high=0.9, step=0.1)._check_size(4)
    with pytest.raises(ValueError, match=r"101\^2 = 10201 points"):
        MatchKL(solver="grid", experts="joint", high=1.0, step=0.01)._check_size(2)
    MatchKL(solver="grid", experts="joint", high=1.0, step=1e-4)._check_size(1)
    with pytest.raises(ValueError, match=r"11\^4 = 14641 points is more than the 10000 allowed"):
        MatchKL(solver="grid", experts="joint", high=1.0, step=0.1).fuse(base, experts, antiexpert)
    MatchKL(solver="grid", high=1.0, step=0.1).fuse(base, experts, antiexpert)
    MatchKL(experts="joint", high=1.0, step=0.1).fuse(base, experts, antiexpert)


class Answers:
    """A rule of a user's own that answers with what `make` makes of its arguments."""

    def __init__(self, make):
        self.make = make

    def fuse(self, base, experts, antiexpert):
        return self.make(base, experts, antiexpert)


@pytest.mark.parametrize(
    ("make", "returned"),
    [
        (lambda b, e, a: b + e[0] - a, "Tensor[2, 3, 13]"),
        (lambda b, e, a: (b, e[..., 0]), "tuple"),
        (lambda b, e, a: None, "NoneType"),
        (lambda b, e, a: Fused(b, torch.ones(len(e))), "Fused(Tensor[2, 3, 13], Tensor[4])"),
        (lambda b, e, a: Fused(b[:1], e[..., 0]), "Fused(Tensor[1, 3, 13], Tensor[4, 2, 3])"),
        (lambda b, e, a: Fused(b, 1.0), "Fused(Tensor[2, 3, 13], float)"),
    ],
)
def test_an_answer_that_is_none_of_a_rule_is_refused(make, returned):
    with pytest.raises(ValueError) as caught:
        fuse(Answers(make), **named(18, 4, 2, 3))
    wanted = "Fused(logits [..., V], weights [T, ...]), here Fused(Tensor[2, 3, 13], Tensor[4, 2, 3])"
    assert str(caught.value) == f"Answers.fuse returned {returned}, but a rule returns {wanted}"
    with pytest.raises(ValueError, match=r"Answers\.fuse returned"):
        try_out(Answers(make), 4)


@pytest.mark.parametrize("rule", RULE_OBJECTS, ids=repr)
def test_a_rule_is_tried_out_for_a_number_of_experts(rule):
    try_out(rule, 2)
    logits = named(19, 2, 3)
    assert torch.equal(fuse(rule, **logits).logits, rule.fuse(*logits.values()).logits)
    if isinstance(rule, Static) and isinstance(rule.weights, tuple):
        with pytest.raises(ValueError, match="has 2 numbers for 3 experts"):
            try_out(rule, 3)


def test_a_rule_that_needs_more_tokens_than_the_trial_has_is_not_refused(caplog):
    best = Answers(lambda b, e, a: Fused(b - b.topk(5000).values[..., -1:], e[..., 0]))
    try_out(best, 1)
    try_out(best, 1)
    (line,) = caplog.messages  # once, however often it is tried out
    assert line.startswith("Answers.fuse raises RuntimeError: ") and f"{__file__}, line " in line
    assert line.endswith(", in a trial on zeros over 1,000 tokens; real logits will decide")


def test_a_rule_that_refuses_few_tokens_is_not_refused():
    def ten_best(b, e, a):
        if b.shape[-1] < 10:
            raise ValueError("ten tokens are wanted")
        return Fused(b - b.topk(10).values[..., -1:], e[..., 0])

    try_out(Answers(ten_best), 1)


def test_a_bug_of_a_rule_shows_in_its_trial(caplog):
    def misspelt(b, e, a):
        return undefined_name  # noqa: F821

    line = misspelt.__code__.co_firstlineno + 1
    with pytest.raises(ValueError) as caught:
        try_out(Answers(misspelt), 1)
    said = "Answers.fuse raises NameError: name 'undefined_name' is not defined"
    assert str(caught.value) == f"{said} ({__file__}, line {line})"
    assert isinstance(caught.value.__cause__, NameError)
    with pytest.raises(ValueError, match=r"Answers.fuse raises KeyError: 'a' \("):
        try_out(Answers(lambda b, e, a: {}["a"]), 1)
    with pytest.raises(ValueError, match=r"Answers.fuse raises AttributeError: .*'logsoftmax' \("):
        try_out(Answers(lambda b, e, a: b.logsoftmax(-1)), 1)
    assert caplog.messages == []


def test_a_rule_of_another_signature_is_refused_in_its_trial():
    class Two:
        def fuse(self, base, experts):
            return Fused(base, experts[..., 0])

    with pytest.raises(ValueError, match=r"^Two.fuse raises TypeError: .*3 positional arguments but 4 were given$"):
        try_out(Two(), 1)


def test_what_depends_on_the_logits_is_a_warning_of_the_trial(caplog):
    try_out(Answers(lambda b, e, a: Fused(b, e[..., 0] * (1 / int(b.sum())))), 1)
    try_out(Answers(lambda b, e, a: Fused(b, e[5][..., 0])), 1)
    assert ["ZeroDivisionError" in line or "IndexError" in line for line in caplog.messages] == [True, True]


class Contrast:
    """A rule of a user's own without experts."""

    inputs = ("base", "antiexpert")

    def fuse(self, large, small):
        return Fused(large - small, large.new_empty(0, *large.shape[:-1]))


def test_a_rule_takes_the_inputs_that_it_names():
    base, experts, antiexpert = trio(20, 2, 3)
    assert inputs_of(Contrast()) == ("base", "antiexpert")
    assert torch.equal(fuse(Contrast(), base=base, antiexpert=antiexpert).logits, base - antiexpert)
    try_out(Contrast(), 0)
    arm = Arm("contrast", "tuned:x", Contrast(), antiexpert="expert:a")
    assert arm.roles == ("tuned:x", "expert:a")
    fused = arm.answer({"tuned:x": base, "expert:a": antiexpert, "base": experts[0]})
    assert torch.equal(fused.logits, base - antiexpert) and fused.weights.shape == (0, 3)


@pytest.mark.parametrize("inputs", [("experts", "antiexpert"), ("base", "amateur"), ("base", "base"), ()])
def test_inputs_that_do_not_exist_are_refused(inputs):
    rule = Contrast()
    rule.inputs = inputs
    with pytest.raises(ValueError, match=r"^Contrast\.inputs=.* must be base and any of experts and antiexpert$"):
        inputs_of(rule)


@pytest.mark.parametrize(
    ("rule", "experts", "says"),
    [
        (Static(), (), "has 0 experts, but its rule takes base, experts, antiexpert"),
        (Contrast(), ("expert:a",), "has 1 experts, but its rule takes base, antiexpert"),
        (None, ("expert:a",), "has 1 experts, but one model alone takes none"),
        (Static, ("expert:a",), "is not a rule"),
    ],
)
def test_an_arm_has_the_experts_that_its_rule_takes(rule, experts, says):
    with pytest.raises(ValueError, match=says):
        Arm("x", rule=rule, experts=experts)
