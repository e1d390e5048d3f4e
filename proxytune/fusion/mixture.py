"""A mixture of distributions: probabilities are averaged, not logits. Shapes: V tokens, T experts, `...` any batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar

import torch
from torch import Tensor

from proxytune.fusion.rule import Fused
from proxytune.fusion.static import check_weights, everywhere, one_per_expert


@dataclass(frozen=True)
class Mixture:
    """p = (1 - sum_t w_t) p_base + sum_t w_t p_expert_t, a linear interpolation of the models' distributions.

    Khandelwal et al. 2020, eq. 3, interpolate a model and a datastore in this way. The logits are base + log(p /
    p_base). Weight 0 gives exactly the base.

    A token that the base masks with -inf stays masked. A token that an expert masks has probability 0 in that expert.
    NaN or +inf in a row makes the row NaN.
    """

    weights: float | tuple[float, ...] = 0.5
    """The mixing weights: one number for all experts, or a list with one per expert; each >= 0, their sum <= 1."""

    id: ClassVar[str] = "mixture"
    formula: ClassVar[str] = "base + log((1 - sum_t w_t) + sum_t w_t p_expert_t / p_base)"
    paper: ClassVar[str] = "Khandelwal et al. 2020 (arXiv 1911.00172)"
    inputs: ClassVar[tuple[str, ...]] = ("base", "experts")

    def __post_init__(self) -> None:
        weights = check_weights(self)
        shares = weights if isinstance(weights, tuple) else (weights,)
        if min(shares) < 0 or math.fsum(shares) > 1:
            raise ValueError(f"Mixture.weights must be 0 or more and together at most 1, got {self.weights!r}")
        object.__setattr__(self, "weights", weights)

    def fuse(self, base: Tensor, experts: Tensor) -> Fused:
        """Fused logits [..., V] and the weights [T, ...].

        Raises ValueError for mismatched shapes, for a list of another length than the experts, and for a sum above 1.
        """
        if base.ndim < 1 or experts.shape[1:] != base.shape or len(experts) < 1:
            shapes = f"{list(base.shape)} and {list(experts.shape)}"
            raise ValueError(f"logits must be base [..., V] and experts [T, ..., V] with T >= 1, got {shapes}")
        weights = one_per_expert(self, len(experts))
        rest = 1 - math.fsum(weights)
        if rest < 0:
            raise ValueError(f"Mixture.weights={self.weights} for {len(experts)} experts are together above 1")
        base = base.float()
        own, masked = base.log_softmax(dim=-1), base.isneginf()
        # float64: in float32 the last bit of logaddexp depends on a token's position in memory.
        parts = [torch.full_like(base, _log(rest), dtype=torch.float64)]
        for weight, expert in zip(weights, experts, strict=True):
            ratio = (expert.float().log_softmax(dim=-1) - own).masked_fill(masked, 0.0)
            parts.append(_log(weight) + ratio.double())
        return Fused(base + reduce(torch.logaddexp, parts).float(), everywhere(weights, base))


def _log(share: float) -> float:
    return math.log(share) if share > 0 else -math.inf
