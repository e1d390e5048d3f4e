"""The same weights at every token: proxy-tuning and its scaled forms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from proxytune.fusion.logits import check_shapes, compare
from proxytune.fusion.rule import Fused


@dataclass(frozen=True)
class Static:
    """base + sum_t weights_t (expert_t - antiexpert), with weights that do not depend on the logits.

    Proxy-tuning is `Static(1.0)` (Liu et al. 2024, eq. 1); Mitchell et al. 2024 interpolate two behaviours with
    `Static((x, 1 - x))`. Weight 0 gives exactly the base, and so does an expert that equals the antiexpert.

    A token that the base masks with -inf stays masked. If an expert or the antiexpert masks a token, that pair's
    difference counts as 0. NaN stays NaN at its token.
    """

    weights: float | tuple[float, ...] = 1.0
    """One number for all experts, or a list with one per expert; finite; negative weights steer away from it."""

    id: ClassVar[str] = "static"
    formula: ClassVar[str] = "base + sum_t w_t (expert_t - antiexpert)"
    paper: ClassVar[str] = "Liu et al. 2024 (arXiv 2401.08565); Mitchell et al. 2024 (arXiv 2310.12962)"

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", check_weights(self))

    def fuse(self, base: Tensor, experts: Tensor, antiexpert: Tensor) -> Fused:
        """Fused logits [..., V] and the weights [T, ...].

        Raises ValueError for mismatched shapes, and for a list of weights of another length than the experts.
        """
        check_shapes(base, experts, antiexpert)
        weights = one_per_expert(self, len(experts))
        fused = base.float()
        for weight, expert in zip(weights, experts, strict=True):
            fused = torch.add(fused, compare(expert, antiexpert)[0], alpha=weight)
        return Fused(fused, everywhere(weights, base))


class Weighted(Protocol):
    """A rule with the same weights at every token."""

    @property
    def weights(self) -> float | tuple[float, ...]: ...


def check_weights(rule: Weighted) -> float | tuple[float, ...]:
    """The rule's weights as floats; raises ValueError unless they are a finite number or a list of finite numbers."""
    weights: Any = rule.weights  # from a config it may be any sequence, or any other value
    several = isinstance(weights, Sequence) and not isinstance(weights, str)
    numbers = list(weights) if several else [weights]
    if not numbers or not all(_finite(number) for number in numbers):
        name = f"{type(rule).__name__}.weights"
        raise ValueError(f"{name} must be a finite number or a list of one per expert, got {weights!r}")
    return tuple(map(float, numbers)) if several else float(weights)


def one_per_expert(rule: Weighted, experts: int) -> tuple[float, ...]:
    """The rule's weight for each expert; raises ValueError for a list of another length."""
    if isinstance(rule.weights, float):
        return (rule.weights,) * experts
    if len(rule.weights) != experts:
        raise ValueError(
            f"{type(rule).__name__}.weights has {len(rule.weights)} numbers for {experts} experts: give one per "
            "expert, or a single number for all"
        )
    return rule.weights


def everywhere(weights: Sequence[float], base: Tensor) -> Tensor:
    """The T weights at each position of `base` [..., V]: [T, ...], float32."""
    if len(set(weights)) == 1:
        return torch.full((len(weights), *base.shape[:-1]), weights[0], dtype=torch.float32, device=base.device)
    column = torch.tensor(weights, dtype=torch.float32, device=base.device)
    return column.view(-1, *[1] * (base.ndim - 1)).expand(-1, *base.shape[:-1])


def _finite(number: object) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
