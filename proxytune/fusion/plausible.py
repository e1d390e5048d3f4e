"""Rules restricted to plausible tokens, as in DExperts. Shapes: V tokens, `...` any batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from proxytune.fusion.rule import Fused, Rule, fuse, inputs_of
from proxytune.fusion.static import Static


@dataclass(frozen=True)
class Plausible(Static):
    """Static weights over the tokens that the base finds plausible; every other token gets -inf.

    Liu et al. 2021 filter the base's distribution by top-p before they shift it; Li et al. 2023 keep the tokens with
    p >= min_p * max p. A token must pass both filters. `min_p` 0 and `top_p` 1 keep all tokens, which is exactly
    `Static`. Weight 0 is the base with its implausible tokens masked.

    Masks and NaN are treated as in `Static`. A scored continuation with an implausible token has log-probability -inf.
    """

    min_p: float = 0.0
    """The minimum probability of a token, as a fraction of the largest; 0 (keeps all) to 1 (only the most likely)."""
    top_p: float = 0.9
    """Keeps the smallest set of most likely tokens whose total probability reaches this; above 0; 1 keeps all."""

    id: ClassVar[str] = "plausible"
    formula: ClassVar[str] = "base + sum_t w_t (expert_t - antiexpert) where p_base >= min_p max p_base and in top-p"
    paper: ClassVar[str] = "Liu et al. 2021 (arXiv 2105.03023)"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_filters(self)

    def fuse(self, base: Tensor, experts: Tensor, antiexpert: Tensor) -> Fused:
        """Fused logits [..., V] and the weights [T, ...]; raises the errors of `Static.fuse`."""
        return among_plausible(super().fuse(base, experts, antiexpert), base, self.min_p, self.top_p)


@dataclass(frozen=True)
class Filtered:
    """Any rule over the tokens that the base finds plausible, as in `Plausible`; every other token gets -inf.

    Weights, masks and NaN are those of the rule itself. `min_p` 0 and `top_p` 1 give exactly the rule.
    """

    rule: str = "static"
    """The id of the rule."""
    parameters: Mapping[str, Any] | tuple[tuple[str, Any], ...] = ()
    """The rule's parameters that differ from its defaults: a mapping, stored as pairs."""
    min_p: float = 0.0
    """As in `Plausible`."""
    top_p: float = 0.9
    """As in `Plausible`."""

    id: ClassVar[str] = "filtered"
    formula: ClassVar[str] = "any rule where p_base >= min_p max p_base and in top-p"
    paper: ClassVar[str] = "Liu et al. 2021 (arXiv 2105.03023); Li et al. 2023 (arXiv 2210.15097)"

    def __post_init__(self) -> None:
        """Raises ValueError for an unknown rule, for invalid parameters of the rule, and for filters out of range."""
        _check_filters(self)
        pairs = sorted((name, _kept(value)) for name, value in dict(self.parameters).items())
        object.__setattr__(self, "parameters", tuple(pairs))
        assert self._made

    @property
    def inputs(self) -> tuple[str, ...]:
        return inputs_of(self._made)

    def fuse(self, base: Tensor, *others: Tensor) -> Fused:
        """Fused logits [..., V] and the weights [T, ...]; has the arguments and the errors of the rule."""
        logits = dict(zip(self.inputs, (base, *others), strict=True))
        return among_plausible(fuse(self._made, **logits), base, self.min_p, self.top_p)

    @cached_property
    def _made(self) -> Rule:
        """The rule itself."""
        from proxytune.fusion import RULES  # here, because RULES also collects this class

        if self.rule not in RULES or self.rule == self.id:
            known = ", ".join(name for name in RULES if name != self.id)
            raise ValueError(f"Filtered.rule must be the id of a rule, one of {known}, got {self.rule!r}")
        try:
            return RULES[self.rule](**dict(self.parameters))
        except TypeError as error:
            raise ValueError(f"Filtered.parameters do not fit rule {self.rule!r}: {error}") from error


def _kept(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def among_plausible(fused: Fused, base: Tensor, min_p: float, top_p: float) -> Fused:
    """`fused` with -inf for the tokens that the base [..., V] finds implausible."""
    base = base.float()
    masked = mask_rare(base, min_p).isneginf() | nucleus(base, top_p).isneginf()
    return fused._replace(logits=fused.logits.masked_fill(masked, -torch.inf))


def mask_rare(logits: Tensor, min_p: float) -> Tensor:
    """`logits` [..., V] with -inf where p < min_p * max p. NaN keeps its row as it is."""
    least = logits.amax(dim=-1, keepdim=True) + (math.log(min_p) if min_p > 0 else -torch.inf)
    return logits.masked_fill(logits < least, -torch.inf)


def nucleus(logits: Tensor, top_p: Tensor | float) -> Tensor:
    """`logits` [..., V] with -inf outside the smallest set of most likely tokens whose total probability reaches
    `top_p`, [...] or one number. Among equally likely tokens the smaller ids are kept."""
    top_p = torch.as_tensor(top_p, dtype=logits.dtype, device=logits.device)
    if bool((top_p >= 1).all()):
        return logits
    probs, order = logits.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    before = probs.cumsum(dim=-1) - probs
    outside = (before >= top_p[..., None]) & (top_p < 1)[..., None]
    outside[..., 0] = False
    return logits.masked_fill(outside.scatter(-1, order, outside), -torch.inf)


def _check_filters(rule: Plausible | Filtered) -> None:
    check_share(rule, "min_p", zero=True)
    check_share(rule, "top_p", zero=False)


def check_share(rule: object, name: str, zero: bool) -> None:
    """Raises ValueError unless the rule's parameter is a number from 0 to 1; `zero`: whether it may be 0."""
    value = getattr(rule, name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= 1 or (value == 0 and not zero):
        bounds = "from 0 to 1" if zero else "above 0 and at most 1"
        raise ValueError(f"{type(rule).__name__}.{name} must be a number {bounds}, got {value!r}")
