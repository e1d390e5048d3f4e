"""Filters by plausibility, and contrastive decoding, against their definitions in plain Python."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_rules import V, trio

from proxytune.fusion import RULES, MatchKL, Rule, Static
from proxytune.fusion.contrastive import Contrastive
from proxytune.fusion.mixture import Mixture
from proxytune.fusion.plausible import Filtered, Plausible, nucleus
from proxytune.fusion.rule import fuse, inputs_of

examples = settings(max_examples=60, deadline=None, derandomize=True)


def probabilities(logits: list[float]) -> list[float]:
    top = max(logits)
    shares = [math.exp(logit - top) for logit in logits]
    return [share / sum(shares) for share in shares]


def plausible(logits: list[float], min_p: float, top_p: float) -> list[int]:
    """The tokens that pass both filters, one by one."""
    probs = probabilities(logits)
    inside, mass = set(), 0.0
    for token in sorted(range(len(probs)), key=lambda token: (-probs[token], token)):
        if inside and mass >= top_p and top_p < 1:
            break
        inside.add(token)
        mass += probs[token]
    return [token for token in inside if probs[token] >= min_p * max(probs)]


@pytest.mark.parametrize("rule", [Plausible(), Contrastive()])
def test_they_are_rules_with_a_name(rule):
    assert isinstance(rule, Rule) and RULES[rule.id] is type(rule)


@examples
@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0.05, 1), st.floats(-2, 2))
def test_plausible_is_static_among_the_plausible_tokens(seed, min_p, top_p, weight):
    base, experts, antiexpert = trio(seed, 2, 4)
    rule = Plausible(weight, min_p, top_p)
    fused, shifted = rule.fuse(base, experts, antiexpert), Static(weight).fuse(base, experts, antiexpert)
    assert torch.equal(fused.weights, shifted.weights)
    for row in range(4):
        kept = plausible(base[row].double().tolist(), min_p, top_p)
        for token in range(V):
            expected = shifted.logits[row, token].item() if token in kept else -math.inf
            assert fused.logits[row, token].item() == expected, (row, token)


def test_without_filters_plausible_is_exactly_static():
    base, experts, antiexpert = trio(1, 2, 2, 3)
    base[0, 0, 3] = experts[1, 0, 1, 4] = antiexpert[1, 2, 5] = -torch.inf
    for weights in (0.0, 0.7, (1.5, -0.5)):
        fused = Plausible(weights, min_p=0.0, top_p=1.0).fuse(base, experts, antiexpert)
        assert torch.equal(fused.logits, Static(weights).fuse(base, experts, antiexpert).logits)


def test_weight_zero_is_the_filtered_base():
    base, experts, antiexpert = trio(2, 1, 5)
    fused = Plausible(0.0, min_p=0.3, top_p=1.0).fuse(base, experts, antiexpert).logits
    kept = base.softmax(-1) >= 0.3 * base.softmax(-1).amax(-1, keepdim=True)
    assert torch.equal(fused, base.masked_fill(~kept, -torch.inf))
    assert 5 < int(fused.isneginf().sum()) < 5 * V


@examples
@given(st.integers(0, 10**6), st.floats(0, 1))
def test_contrastive_is_the_published_score(seed, min_p):
    base, _, antiexpert = trio(seed, 1, 3)
    fused = Contrastive(min_p).fuse(base, antiexpert)
    assert fused.weights.shape == (0, 3)
    for row in range(3):
        large, small = (probabilities(logits[row].double().tolist()) for logits in (base, antiexpert))
        for token in range(V):
            score = math.log(large[token]) - math.log(small[token]) if large[token] >= min_p * max(large) else -math.inf
            assert fused.logits[row, token].item() == pytest.approx(score, abs=1e-4)


def test_contrastive_at_one_is_the_greedy_base_and_at_zero_masks_nothing():
    base, _, antiexpert = trio(3, 1, 6)
    alone = Contrastive(1.0).fuse(base, antiexpert).logits
    assert torch.equal(alone.argmax(-1), base.argmax(-1)) and int(alone.isfinite().sum()) == 6
    assert Contrastive(0.0).fuse(base, antiexpert).logits.isfinite().all()


def test_contrastive_of_equal_models_prefers_no_plausible_token():
    base, _, _ = trio(4, 1, 5)
    fused = Contrastive(0.2).fuse(base, base).logits
    assert torch.equal(fused[fused.isfinite()], torch.zeros(int(fused.isfinite().sum())))


def test_contrastive_and_masked_tokens():
    """A token that the base masks stays masked; one that only the antiexpert masks has contrast 0, not infinity."""
    base, _, antiexpert = trio(5, 1, 2)
    base[0, 1] = antiexpert[:, 2] = antiexpert[0, 1] = -torch.inf
    fused = Contrastive(0.0).fuse(base, antiexpert).logits
    assert fused[0, 1] == -torch.inf and torch.equal(fused[:, 2], torch.zeros(2))
    assert not fused.isnan().any() and not fused.isposinf().any()


@pytest.mark.parametrize("rule", [Plausible(1.0, 0.2, 0.8), Contrastive(0.2)])
def test_filtered_rows_do_not_depend_on_each_other_and_any_float_type_will_do(rule):
    logits = dict(zip(("base", "experts", "antiexpert"), trio(6, 2, 4), strict=True))
    taken = [logits[name] for name in getattr(rule, "inputs", logits)]
    whole = rule.fuse(*taken)
    for i in range(4):
        alone = rule.fuse(*(x[:, i] if x.ndim == 3 else x[i] for x in taken))
        torch.testing.assert_close(alone.logits, whole.logits[i])
    half = rule.fuse(*(x.bfloat16() for x in taken))
    assert half.logits.dtype == half.weights.dtype == torch.float32
    assert torch.equal(half.logits, rule.fuse(*(x.bfloat16().double() for x in taken)).logits)


@examples
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=12), st.floats(0.05, 1))
def test_nucleus_is_the_fewest_likeliest_tokens(logits, top_p):
    kept = nucleus(torch.tensor([logits], dtype=torch.float64), torch.tensor([top_p], dtype=torch.float64))[0]
    assert (~kept.isneginf()).nonzero().flatten().tolist() == sorted(plausible(logits, 0.0, top_p))


def test_a_row_that_keeps_all_keeps_all_beside_a_row_that_does_not():
    """Also where the first token alone has all the mass up to rounding."""
    logits = torch.tensor([[100.0, 1.0, 0.0]]).expand(3, 3)
    kept = nucleus(logits, torch.tensor([1.0, 0.9, 1.0])).isfinite()
    assert kept.tolist() == [[True] * 3, [True, False, False], [True] * 3]


def test_nan_stays_where_the_user_sees_it():
    base, experts, antiexpert = trio(7, 1, 1)
    base[0, 4] = torch.nan
    assert Plausible(1.0, 0.5, 0.9).fuse(base, experts, antiexpert).logits[0, 4].isnan()
    assert Contrastive(0.5).fuse(base, antiexpert).logits[0, 4].isnan()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Plausible(min_p=-0.1), "Plausible.min_p must be a number from 0 to 1, got -0.1"),
        (lambda: Plausible(min_p=float("nan")), "Plausible.min_p must be a number from 0 to 1, got nan"),
        (lambda: Plausible(top_p=0), "Plausible.top_p must be a number above 0 and at most 1, got 0"),
        (lambda: Plausible(top_p=True), "Plausible.top_p must be a number above 0 and at most 1, got True"),
        (lambda: Plausible(weights=float("inf")), "Plausible.weights must be a finite number"),
        (lambda: Contrastive(1.5), "Contrastive.min_p must be a number from 0 to 1, got 1.5"),
        (lambda: Contrastive("0.1"), "Contrastive.min_p must be a number from 0 to 1, got '0.1'"),
        (lambda: Contrastive().fuse(torch.zeros(2, 3), torch.zeros(2, 4)), r"got [2, 3] and [2, 4]"),
        (lambda: Plausible((1.0, 2.0)).fuse(*trio(8, 1, 2)), "Plausible.weights has 2 numbers for 1 experts"),
    ],
)
def test_bad_parameters_take_one_line(make, says):
    with pytest.raises(ValueError) as caught:
        make()
    assert says in str(caught.value) and "\n" not in str(caught.value)


@examples
@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0.05, 1))
def test_a_filtered_rule_is_the_rule_among_the_plausible_tokens(seed, min_p, top_p):
    base, experts, antiexpert = trio(seed, 2, 4)
    models = {"base": base, "experts": experts, "antiexpert": antiexpert}
    for rule, parameters in ((MatchKL(high=1.0), {"high": 1.0}), (Mixture(0.3), {"weights": 0.3})):
        taken = {name: models[name] for name in inputs_of(rule)}
        plain, filtered = fuse(rule, **taken), fuse(Filtered(rule.id, parameters, min_p, top_p), **taken)
        assert torch.equal(filtered.weights, plain.weights)
        for row in range(4):
            kept = plausible(base[row].double().tolist(), min_p, top_p)
            expected = [plain.logits[row, token].item() if token in kept else -math.inf for token in range(V)]
            assert filtered.logits[row].tolist() == expected


def test_a_filtered_static_rule_is_plausible_and_without_filters_it_is_the_rule():
    base, experts, antiexpert = trio(3, 2, 4)
    models = {"base": base, "experts": experts, "antiexpert": antiexpert}
    alike = fuse(Filtered("static", {"weights": [0.5, 1.5]}, 0.05, 0.8), **models)
    assert all(map(torch.equal, alike, fuse(Plausible((0.5, 1.5), 0.05, 0.8), **models)))
    assert all(map(torch.equal, fuse(Filtered("match_kl", top_p=1.0), **models), fuse(MatchKL(), **models)))


def test_filtered_rules_with_equal_parameters_are_equal_in_whatever_form_these_come():
    one = Filtered("match_kl", {"low": -1.0, "high": 1.0})
    assert one == Filtered("match_kl", (("high", 1.0), ("low", -1.0))) != Filtered("match_kl", {"low": -1.0})
    assert hash(one) == hash(Filtered("match_kl", {"high": 1.0, "low": -1.0}))
    assert Filtered("static", {"weights": [0.5, 1.5]}).parameters == (("weights", (0.5, 1.5)),)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"rule": "statics"}, "Filtered.rule must be the id of a rule, one of contrastive, "),
        ({"rule": "filtered"}, "Filtered.rule must be the id of a rule"),
        ({"parameters": {"weight": 1}}, "Filtered.parameters do not fit rule 'static': "),
        ({"parameters": {"weights": "x"}}, "Static.weights must be a finite number"),
        ({"top_p": 0}, "Filtered.top_p must be a number above 0"),
    ],
)
def test_a_wrong_filtered_rule_is_one_line(given, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        Filtered(**given)
