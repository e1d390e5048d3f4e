"""What an arm makes of its members' logits, against the formula written out."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
import torch

from proxytune.fusion import Static
from proxytune.fusion.arm import Arm
from proxytune.fusion.contrastive import Contrastive

ROLES = ("base", "tuned:x", "antiexpert", "expert:a", "expert:b")


def logits(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return {role: torch.randn(2, 3, 7, generator=g).to(dtype) for role in ROLES}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_alone_answers_with_its_own_logits_and_no_weights(dtype):
    arm, models = Arm("x", base="tuned:x"), logits(dtype)
    fused = arm.answer(models)
    assert arm.roles == ("tuned:x",)
    assert torch.equal(fused.logits, models["tuned:x"].float())
    assert fused.weights.shape == (0, 2, 3)
    assert fused.logits.dtype == fused.weights.dtype == torch.float32


def test_several_experts_keep_their_order():
    arm, models = Arm("both", rule=Static((0.3, -1.2)), experts=("expert:b", "expert:a")), logits()
    expected = (
        models["base"]
        + 0.3 * (models["expert:b"] - models["antiexpert"])
        - 1.2 * (models["expert:a"] - models["antiexpert"])
    )
    fused = arm.answer(models)
    assert arm.roles == ("base", "expert:b", "expert:a", "antiexpert")
    torch.testing.assert_close(fused.logits, expected)
    assert fused.weights[:, 0, 0].tolist() == pytest.approx([0.3, -1.2])


def test_any_role_may_take_any_place():
    arm = Arm("down", base="expert:a", rule=Static(0.5), experts=("tuned:x",), antiexpert="base")
    models = logits()
    expected = models["expert:a"] + 0.5 * (models["tuned:x"] - models["base"])
    torch.testing.assert_close(arm.answer(models).logits, expected)
    assert arm.answer(models).weights.shape == (1, 2, 3)


def test_a_rule_without_experts():
    arm = Arm("contrast", rule=Contrastive(min_p=0.0))
    models = logits()
    expected = models["base"].log_softmax(-1) - models["antiexpert"].log_softmax(-1)
    assert (arm.inputs, arm.roles) == (("base", "antiexpert"), ("base", "antiexpert"))
    torch.testing.assert_close(arm.answer(models).logits, expected)
    assert arm.answer(models).weights.shape == (0, 2, 3)


def test_an_arm_is_a_value():
    arm = Arm("x", rule=Static(1.0), experts=("expert:a",))
    assert arm == Arm("x", rule=Static(1.0), experts=("expert:a",)) != Arm("x")
    assert hash(arm) == hash(Arm("x", rule=Static(1.0), experts=("expert:a",)))
    assert repr(Arm("x")) == "Arm(name='x', base='base', rule=None, experts=(), antiexpert='antiexpert')"
    with pytest.raises(FrozenInstanceError):
        arm.base = "tuned:x"
