"""What a fusion rule is. Shapes: V tokens, T experts, `...` any rows and positions."""

from __future__ import annotations

from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

from torch import Tensor


class Fused(NamedTuple):
    """What a rule answers: the fused logits and the weight it gave each expert."""

    logits: Tensor
    """[..., V], float32, not normalised."""
    weights: Tensor
    """[T, ...], float32: the alpha of each expert at each position."""


@runtime_checkable
class Rule(Protocol):
    """Turns the logits of base, experts and antiexpert into fused logits.

    A rule works on each position alone and keeps no history, so that decoding step by step, verifying several
    tokens at once and teacher forcing all give the same answer.
    """

    id: ClassVar[str]
    """Short name, as in `conf/fusion/<id>.yaml`."""
    formula: ClassVar[str]
    """The rule in one line of plain text."""
    paper: ClassVar[str]
    """Where it comes from: authors, year, arXiv number."""

    def fuse(self, base: Tensor, experts: Tensor, antiexpert: Tensor) -> Fused:
        """`base` and `antiexpert` are [..., V], `experts` is [T, ..., V]; any float type, computed in float32."""
        ...
