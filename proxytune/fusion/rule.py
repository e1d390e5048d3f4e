"""What a fusion rule is, and the one way to call it. Shapes: V tokens, T experts, `...` any rows and positions."""

from __future__ import annotations

from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
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


def fuse(rule: Rule, base: Tensor, experts: Tensor, antiexpert: Tensor) -> Fused:
    """What `rule` answers. Raises ValueError if that is not what a rule has to answer."""
    fused = rule.fuse(base, experts, antiexpert)
    shapes = base.shape, experts.shape[:-1]
    if not isinstance(fused, Fused) or tuple(getattr(part, "shape", None) for part in fused) != shapes:
        raise ValueError(
            f"{type(rule).__name__}.fuse returned {_described(fused)}, but a rule returns Fused(logits [..., V], "
            f"weights [T, ...]), here {_described(Fused(base, experts[..., 0]))}"
        )
    return fused


def try_out(rule: Rule, experts: int) -> None:
    """Raises ValueError for a rule that refuses this number of experts, or whose answer is no answer of a rule."""
    base = torch.zeros(3, 1000)
    try:
        fuse(rule, base, base.expand(experts, 3, 1000), base)
    except ValueError:
        raise
    except Exception:
        return  # a bug of the rule, or too few tokens for it: real logits will show


def _described(answer: object) -> str:
    if isinstance(answer, Fused):
        return f"Fused({', '.join(map(_described, answer))})"
    return f"Tensor{list(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
