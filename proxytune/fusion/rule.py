"""What a fusion rule is, and the one way to call it. Shapes: V tokens, T experts, `...` any rows and positions."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

INPUTS = ("base", "experts", "antiexpert")
"""What a rule may take, and what it takes unless it has `inputs`."""
_DEPENDS_ON_LOGITS = (ArithmeticError, LookupError, RuntimeError)
"""Errors of a trial that real logits may not raise: a rule may need more tokens than the trial has."""


class Fused(NamedTuple):
    """The fused logits, and the weight that the rule gave each expert."""

    logits: Tensor
    """[..., V], float32, not normalised."""
    weights: Tensor
    """[T, ...], float32: the alpha of each expert at each position."""


@runtime_checkable
class Rule(Protocol):
    """Turns the logits of several models into fused logits.

    A rule works on each position alone and keeps no history, so that decoding step by step, verifying several
    tokens at once and teacher forcing all give the same answer.

    `fuse(base, experts, antiexpert)` takes the logits of the base and the antiexpert, [..., V], and of the experts,
    [T, ..., V], in any float type, and computes in float32. A rule that takes fewer of them names what it takes, in
    the order of its arguments: `inputs: ClassVar[tuple[str, ...]] = ("base", "antiexpert")`. Every rule takes the base.
    """

    id: ClassVar[str]
    """Short name, as in `conf/fusion/<id>.yaml`."""
    formula: ClassVar[str]
    """The rule in one line of plain text."""
    paper: ClassVar[str]
    """Where it comes from: authors, year, arXiv number."""

    def fuse(self, *args: Any, **kwargs: Any) -> Fused:
        """The fused logits [..., V] and the weights [T, ...] (T = 0 for a rule without experts)."""
        ...


def inputs_of(rule: Rule) -> tuple[str, ...]:
    """What `rule.fuse` takes, in order. Raises ValueError for something else than a rule, or unknown inputs."""
    if isinstance(rule, type) or not hasattr(rule, "fuse"):
        raise ValueError(f"{rule!r} is not a rule: give an object with fuse(), such as MatchKL() or Static(1.0)")
    inputs = tuple(getattr(rule, "inputs", INPUTS))
    if "base" not in inputs or not set(inputs) <= set(INPUTS) or len(set(inputs)) < len(inputs):
        raise ValueError(f"{type(rule).__name__}.inputs={inputs} must be base and any of experts and antiexpert")
    return inputs


def fuse(rule: Rule, **logits: Tensor) -> Fused:
    """What `rule` makes of `logits`, given in the order of `inputs_of(rule)`. Raises ValueError if it does not fit."""
    fused = rule.fuse(*logits.values())
    base, experts = logits["base"].shape, logits["experts"].shape[:1] if "experts" in logits else (0,)
    expected = (base, (*experts, *base[:-1]))
    if not isinstance(fused, Fused) or tuple(getattr(part, "shape", None) for part in fused) != expected:
        raise ValueError(
            f"{type(rule).__name__}.fuse returned {_described(fused)}, but a rule returns Fused(logits [..., V], "
            f"weights [T, ...]), here Fused(Tensor{list(expected[0])}, Tensor{list(expected[1])})"
        )
    return fused


def try_out(rule: Rule, experts: int) -> None:
    """Calls the rule once on zeros. Raises what it raises, such as ValueError for a number of experts it refuses."""
    logits = torch.zeros(3, 1000)
    inputs = {name: logits.expand(experts, 3, 1000) if name == "experts" else logits for name in inputs_of(rule)}
    try:
        fuse(rule, **inputs)
    except _DEPENDS_ON_LOGITS:
        return


def _described(answer: object) -> str:
    if isinstance(answer, Fused):
        return f"Fused({', '.join(map(_described, answer))})"
    return f"Tensor{list(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
