"""What every registered rule has in common: shapes, independent rows, masks, NaN, and where it is the base."""

from __future__ import annotations

import itertools
from dataclasses import FrozenInstanceError, fields, replace

import pytest
import torch
from torch import Tensor

from proxytune.fusion import RULES, Fused, MatchKL, Rule, Static, _rules, logits
from proxytune.fusion.contrastive import Contrastive
from proxytune.fusion.mixture import Mixture
from proxytune.fusion.plausible import Filtered, Plausible
from proxytune.fusion.rule import fuse, inputs_of

OBJECTS = [
    *(rule() for rule in RULES.values()),
    Static((0.3, -1.2)),
    *(MatchKL(solver=s, experts=e, step=0.5) for s in ("exact", "grid") for e in ("one_at_a_time", "joint")),
    MatchKL(low=-1.0, high=1.5),
    Filtered("match_kl", {"low": -1.0}, min_p=0.1, top_p=1.0),
    Filtered("mixture"),
    Filtered("contrastive", {"min_p": 0.0}),
]
SHIFTS = [rule for rule in OBJECTS if inputs_of(rule) == ("base", "experts", "antiexpert")]
"""Rules that add to the base what experts differ by from the antiexpert."""
WITH_EXPERTS = [rule for rule in OBJECTS if "experts" in inputs_of(rule)]
WEIGHTED = [rule for rule in WITH_EXPERTS if isinstance(rule, MatchKL | Filtered) or hasattr(rule, "weights")]
"""Rules whose weights a parameter sets or bounds."""
every_rule = pytest.mark.parametrize("rule", OBJECTS, ids=repr)


def some_logits(seed: int, *shape: int, T: int = 2, change: float = 2.0) -> dict[str, Tensor]:
    """Random logits [*shape] of base and antiexpert, and of T experts, which are not far from the antiexpert."""
    g = torch.Generator().manual_seed(seed)
    common = torch.randn(*shape, generator=g)
    base, antiexpert = (3 * common + torch.randn(*shape, generator=g) for _ in range(2))
    experts = antiexpert + change * torch.randn(T, *shape, generator=g)
    return {"base": base, "experts": experts, "antiexpert": antiexpert}


def answer(rule: Rule, models: dict[str, Tensor]) -> Fused:
    return fuse(rule, **{name: models[name] for name in inputs_of(rule)})


def each(models: dict[str, Tensor], change) -> dict[str, Tensor]:
    return {name: change(x) for name, x in models.items()}


def assert_equal(a: Fused, b: Fused) -> None:
    """To the last bit."""
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)


def test_rules_are_found_in_the_files_of_their_folder():
    kinds = (Contrastive, Filtered, MatchKL, Mixture, Plausible, Static)
    assert _rules() == RULES == {kind.id: kind for kind in kinds}


@pytest.mark.parametrize(("id", "kind"), RULES.items())
def test_a_rule_is_a_value_that_says_what_it_is(id, kind):
    rule = kind()
    assert rule.id == id and isinstance(rule, Rule)
    assert "base" in rule.formula and rule.paper
    assert rule == kind() and hash(rule) == hash(kind())
    with pytest.raises(FrozenInstanceError):
        setattr(rule, fields(rule)[0].name, 1.0)


@every_rule
def test_shapes_and_types(rule):
    T = 2 if "experts" in inputs_of(rule) else 0
    for shape, dtype in itertools.product(
        [(13,), (4, 13), (2, 3, 13), (0, 13), (4, 1)], [torch.float32, torch.float64]
    ):
        fused = answer(rule, each(some_logits(0, *shape), lambda x, dtype=dtype: x.to(dtype)))
        assert fused.logits.shape == shape and fused.weights.shape == (T, *shape[:-1])
        assert fused.logits.dtype == fused.weights.dtype == torch.float32


@every_rule
def test_logits_without_a_dimension_of_tokens_are_refused(rule):
    models = {"base": torch.tensor(1.0), "experts": torch.ones(2), "antiexpert": torch.tensor(0.0)}
    with pytest.raises(ValueError, match="logits must be base"):
        answer(rule, models)


@pytest.mark.parametrize("rule", WITH_EXPERTS, ids=repr)
def test_no_experts_are_refused(rule):
    models = some_logits(15, 3, 13)
    with pytest.raises(ValueError, match="T >= 1"):
        answer(rule, models | {"experts": models["experts"][:0]})


@every_rule
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(rule, dtype):
    models = each(some_logits(1, 10, 100), lambda x: x.to(dtype))
    assert_equal(answer(rule, models), answer(rule, each(models, Tensor.float)))


@every_rule
@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_the_default_type_of_torch_does_not_matter(rule, default):
    models = some_logits(14, 4, 13)
    expected = answer(rule, models)
    torch.set_default_dtype(default)
    try:
        fused = answer(rule, models)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_equal(fused, expected)


@every_rule
def test_inputs_are_left_alone_and_may_want_gradients(rule):
    originals = some_logits(2, 4, 16)
    models = each(originals, lambda x: x.clone().requires_grad_())
    answer(rule, models)
    assert all(torch.equal(models[name], x) for name, x in originals.items())


@every_rule
@pytest.mark.parametrize(("T", "n", "vocabulary"), [(2, 6, 257), (2, 3, 2**17 + 5), (5, 21, 33)])
def test_a_row_is_the_same_to_the_last_bit_alone_and_among_others(rule, T, n, vocabulary, monkeypatch):
    """In vocabularies like Gemma's, one row is more than what is worked on together."""
    if isinstance(rule, Static) and isinstance(rule.weights, tuple):
        rule = replace(rule, weights=(0.3, -1.2, 0.0, 1.0, 2.0)[:T])
    if isinstance(rule, Mixture):
        rule = replace(rule, weights=1 / T)
    if rule == Filtered("mixture"):
        rule = Filtered("mixture", {"weights": 1 / T})
    if isinstance(rule, MatchKL) and T == 5:
        rule = replace(rule, step=rule.high - rule.low)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    models = some_logits(3, n, vocabulary, T=T, change=1.0)
    whole = answer(rule, models)
    for i in {0, n // 2, n - 1}:
        assert_equal(answer(rule, each(models, lambda x, i=i: x[..., i, :])), Fused(whole[0][i], whole[1][:, i]))


@every_rule
def test_where_a_row_stands_changes_nothing(rule):
    """Positions of several texts, the same flat, in another order, and not contiguous in memory."""
    models = some_logits(4, 5, 3, 40)
    whole = answer(rule, models)
    flat = answer(rule, each(models, lambda x: x.flatten(-3, -2)))
    assert_equal(flat, Fused(whole.logits.flatten(0, 1), whole.weights.flatten(1)))
    turned = answer(rule, each(models, lambda x: x.transpose(-3, -2)))
    assert_equal(turned, Fused(whole.logits.transpose(0, 1), whole.weights.transpose(1, 2)))
    back = answer(rule, each(models, lambda x: x.flip(-3)))
    assert_equal(back, Fused(whole.logits.flip(0), whole.weights.flip(1)))


@every_rule
def test_how_rows_are_cut_into_batches_changes_nothing(rule, monkeypatch):
    models = some_logits(5, 3, 7, 64)
    whole = answer(rule, models)
    monkeypatch.setattr(logits, "BATCH", 5 * 64)
    monkeypatch.setattr(logits, "CACHED", 2 * 64)
    assert_equal(answer(rule, models), whole)


@every_rule
def test_the_order_of_tokens_does_not_matter(rule):
    models = some_logits(6, 30, 300)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    fused, shuffled = answer(rule, models), answer(rule, each(models, lambda x: x[..., order]))
    torch.testing.assert_close(shuffled.weights, fused.weights, rtol=0, atol=1e-3)
    torch.testing.assert_close(shuffled.logits, fused.logits[..., order], rtol=0, atol=1e-2)


@every_rule
@pytest.mark.parametrize("name", ["base", "experts", "antiexpert"])
def test_a_constant_added_to_a_model_changes_no_probability(rule, name):
    models = some_logits(7, 5, 13)
    plain = answer(rule, models)
    moved = answer(rule, models | {name: models[name] + 7})
    torch.testing.assert_close(moved.weights, plain.weights, rtol=0, atol=1e-3)
    torch.testing.assert_close(moved.logits.softmax(-1), plain.logits.softmax(-1), rtol=0, atol=1e-2)


@every_rule
def test_masks_never_make_nan_and_what_the_base_masks_stays_masked(rule):
    """All combinations of models that mask one token, a different one in each row."""
    models = each(some_logits(8, 1, 13), lambda x: x.repeat_interleave(16, -2))
    base, (first, second), antiexpert = models.values()
    for i, masks in enumerate(itertools.product((False, True), repeat=4)):
        for masked, model in zip(masks, (base, first, second, antiexpert), strict=True):
            model[i, i % 13] = -torch.inf if masked else model[i, i % 13]
    fused = answer(rule, models)
    assert not fused.logits.isnan().any() and not fused.weights.isnan().any()
    assert fused.logits[base.isneginf()].isneginf().all()
    assert fused.logits.isfinite().any(-1).all()
    if rule in SHIFTS:
        silent = (models["experts"].isneginf() | antiexpert.isneginf()).all(0) & ~fused.logits.isneginf()
        assert silent.any()
        assert torch.equal(fused.logits[silent], base[silent])


@every_rule
def test_a_row_with_one_token_left_stays_that_token(rule):
    models = some_logits(9, 3, 13)
    models["base"][1] = -torch.inf
    models["base"][1, 4] = 0.5
    fused = answer(rule, models)
    assert fused.logits.isfinite()[1].nonzero().tolist() == [[4]]


@every_rule
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["base", "experts", "antiexpert"])
def test_nan_and_infinity_show_in_their_row_and_nowhere_else(rule, poison, name):
    models = some_logits(10, 4, 40)
    clean = answer(rule, models)
    models[name][..., 2, models["base"][2].argmax()] = poison
    fused = answer(rule, models)
    others = [0, 1, 3]
    assert_equal(Fused(fused.logits[others], fused.weights[:, others]), Fused(clean[0][others], clean[1][:, others]))
    if name in inputs_of(rule) and poison != torch.inf:
        assert fused.logits[2].isnan().any()
    if name in inputs_of(rule) and isinstance(rule, MatchKL):
        assert fused.logits[2].isnan().all() and fused.weights[:, 2].isnan().all()


# Rules with experts


@pytest.mark.parametrize("rule", SHIFTS, ids=repr)
def test_logits_are_the_base_and_the_differences_at_the_returned_weights(rule):
    models = some_logits(11, 5, 13)
    fused = answer(rule, models)
    base, experts, antiexpert = (x.double() for x in models.values())
    expected = base + (fused.weights.double()[..., None] * (experts - antiexpert)).sum(0)
    kept = ~fused.logits.isneginf()
    torch.testing.assert_close(fused.logits.double()[kept], expected[kept], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rule", SHIFTS, ids=repr)
def test_an_expert_equal_to_the_antiexpert_gives_exactly_the_base(rule):
    models = some_logits(12, 6, 13)
    fused = answer(rule, models | {"experts": models["antiexpert"].expand(2, 6, 13)})
    kept = ~fused.logits.isneginf()
    assert kept.any(-1).all()
    assert torch.equal(fused.logits[kept], models["base"][kept])
    if isinstance(rule, MatchKL):
        assert (fused.weights[0] == rule.low).all()


@pytest.mark.parametrize("rule", WEIGHTED, ids=repr)
def test_weight_zero_is_exactly_the_base(rule):
    weights = {"low": 0.0, "high": 0.0} if "match_kl" in (rule.id, getattr(rule, "rule", "")) else {"weights": 0.0}
    zero = replace(rule, parameters=weights) if isinstance(rule, Filtered) else replace(rule, **weights)
    models = some_logits(13, 6, 13)
    fused = answer(zero, models)
    kept = ~fused.logits.isneginf()
    assert kept.any(-1).all()
    assert torch.equal(fused.logits[kept], models["base"][kept])
    assert (fused.weights == 0).all()
