"""Logits that are no answer: NaN, infinite, or -inf for every token. Shapes: B rows, K positions, V tokens."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from proxytune.errors import UserError
from proxytune.fusion.rule import Rule


def check_finite(fused: Tensor, members: Mapping[str, Tensor], real: Tensor, rule: Rule | None) -> None:
    """UserError, naming the member or the rule, where `fused` [B, K, V] is no answer at a position of `real` [B, K].

    `members` are the logits [B, K, V] by role. A token may be ruled out (-inf); padding may give anything.
    """
    broken = _undefined(fused) & real.to(fused.device).bool()
    if not broken.any():
        return
    row = int(broken.any(dim=1).nonzero()[0])
    at_fault = [role for role, logits in members.items() if (_undefined(logits) & broken).any()]
    if not at_fault:
        raise UserError(
            f"{type(rule).__name__} made NaN or infinite logits of the members' finite ones in row {row} of the batch"
        )
    raise UserError(
        f"{at_fault[0]} gives NaN or infinite logits in row {row} of the batch: "
        "its weights are damaged, or overflow in their dtype (float16 does; try bfloat16 or float32)"
    )


def _undefined(logits: Tensor) -> Tensor:
    """Where the largest of `logits` [B, K, V] is not a number or not finite, [B, K]."""
    return ~logits.amax(dim=-1).isfinite()
