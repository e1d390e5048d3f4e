"""The mixture of distributions, against its definition in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_rules import trio

from proxytune.fusion.mixture import Mixture
from proxytune.fusion.rule import fuse, try_out

examples = settings(max_examples=60, deadline=None, derandomize=True)


@examples
@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1))
def test_it_is_the_weighted_mean_of_the_probabilities(seed, first, share):
    base, experts, _ = trio(seed, 2, 4)
    weights = (first, share * (1 - first))
    fused = fuse(Mixture(weights), base=base, experts=experts)
    p = [x.double().softmax(-1) for x in (base, *experts)]
    expected = (1 - sum(weights)) * p[0] + weights[0] * p[1] + weights[1] * p[2]
    torch.testing.assert_close(fused.logits.double().softmax(-1), expected, rtol=1e-4, atol=1e-7)
    assert fused.weights[:, 0].tolist() == pytest.approx(list(weights))


def test_weight_one_is_the_expert_except_where_the_base_masks():
    base, experts, _ = trio(0, 1, 4)
    base[1, 3] = -torch.inf
    p = fuse(Mixture(1.0), base=base, experts=experts).logits.softmax(-1)
    expected = experts[0].softmax(-1)
    expected[1, 3] = 0
    expected[1] /= expected[1].sum()
    torch.testing.assert_close(p, expected)


def test_a_token_that_an_expert_masks_keeps_the_bases_share():
    base, experts, _ = trio(1, 1, 4)
    experts[0, 2, 5] = -torch.inf
    p = fuse(Mixture(0.25), base=base, experts=experts).logits.softmax(-1)
    assert p[2, 5].item() == pytest.approx(0.75 * base.softmax(-1)[2, 5].item(), rel=1e-5)


def test_shares_from_a_config_are_a_value():
    assert Mixture([0, 0.5]) == Mixture((0.0, 0.5)) and hash(Mixture([0, 0.5])) == hash(Mixture((0.0, 0.5)))
    assert repr(Mixture(1)) == "Mixture(weights=1.0)"


@pytest.mark.parametrize("weights", [-0.1, 1.1, (0.6, 0.6), (0.5, -0.1), float("nan"), "x", []])
def test_shares_that_are_no_distribution_are_refused(weights):
    with pytest.raises(ValueError, match=r"^Mixture\.weights must be"):
        Mixture(weights)


def test_a_share_for_each_of_too_many_experts_is_refused_before_any_model():
    try_out(Mixture(0.5), 2)
    with pytest.raises(ValueError, match=r"Mixture\.weights=0\.5 for 3 experts are together above 1"):
        try_out(Mixture(0.5), 3)
    with pytest.raises(ValueError, match="has 2 numbers for 3 experts"):
        try_out(Mixture((0.1, 0.2)), 3)
