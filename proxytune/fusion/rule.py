"""The interface of fusion rules and the function that calls them. Shapes: V tokens, T experts, `...` any batch."""

from __future__ import annotations

import logging
import traceback
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

log = logging.getLogger(__name__)

INPUTS = ("base", "experts", "antiexpert")
"""The arguments that a rule may take; a rule without `inputs` takes all of them."""
_TRIAL_TOKENS = 1000
_DEPENDS_ON_LOGITS = (ArithmeticError, IndexError, RuntimeError)
"""Errors of a trial call that real logits may avoid: too few tokens, or a division by 0 because logits are equal."""


class Fused(NamedTuple):
    """The fused logits and the weight that the rule gave each expert."""

    logits: Tensor
    """[..., V], float32, not normalised."""
    weights: Tensor
    """[T, ...], float32: the alpha of each expert at each position."""


class RuleBug(ValueError):
    """A rule raised an error that does not depend on the logits: the rule, the error and its location, in one line."""


@runtime_checkable
class Rule(Protocol):
    """Turns the logits of several models into fused logits.

    A rule treats each position independently and keeps no history. Decoding step by step, verifying several tokens at
    once and teacher forcing therefore give the same result.

    `fuse(base, experts, antiexpert)` takes the logits of the base and the antiexpert, [..., V], and of the experts,
    [T, ..., V], in any float type, and computes in float32. A rule that takes fewer of them lists them in the
    order of its arguments: `inputs: ClassVar[tuple[str, ...]] = ("base", "antiexpert")`. Every rule takes the base.
    """

    id: ClassVar[str]
    """The short name, as in `conf/fusion/<id>.yaml`."""
    formula: ClassVar[str]
    """The rule in one line of plain text."""
    paper: ClassVar[str]
    """Its source: authors, year, arXiv number."""

    def fuse(self, *args: Any, **kwargs: Any) -> Fused:
        """The fused logits [..., V] and the weights [T, ...] (T = 0 for a rule without experts)."""
        ...


def inputs_of(rule: Rule) -> tuple[str, ...]:
    """The arguments of `rule.fuse`, in order. Raises ValueError if `rule` is not a rule or has unknown inputs."""
    if isinstance(rule, type) or not hasattr(rule, "fuse"):
        raise ValueError(f"{rule!r} is not a rule: give an object with fuse(), such as MatchKL() or Static(1.0)")
    inputs = tuple(getattr(rule, "inputs", INPUTS))
    if "base" not in inputs or not set(inputs) <= set(INPUTS) or len(set(inputs)) < len(inputs):
        raise ValueError(f"{type(rule).__name__}.inputs={inputs} must be base and any of experts and antiexpert")
    return inputs


def fuse(rule: Rule, **logits: Tensor) -> Fused:
    """Calls `rule` on `logits`, in the order of `inputs_of(rule)`. Raises ValueError for a result that does not fit."""
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
    """Calls the rule once, on zeros over 1,000 tokens, to find its mistakes before any model loads.

    Raises ValueError if the rule refuses the number of experts or returns something other than a `Fused` of the right
    shapes, and RuleBug for any other error. A rule may need the real vocabulary, or logits that differ. Therefore an
    ArithmeticError, IndexError or RuntimeError (torch's error for shapes) is only logged as a warning.
    """
    logits = torch.zeros(3, _TRIAL_TOKENS)
    inputs = {name: logits.expand(experts, *logits.shape) if name == "experts" else logits for name in inputs_of(rule)}
    try:
        fuse(rule, **inputs)
    except ValueError:
        raise
    except Exception as error:
        message = f"{type(rule).__name__}.fuse raises {type(error).__name__}: {_first_line(error)}{_place(error)}"
        if not isinstance(error, _DEPENDS_ON_LOGITS):
            raise RuleBug(message) from error
        _warn_once(f"{message}, in a trial on zeros over {_TRIAL_TOKENS:,} tokens; real logits will decide")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _place(error: Exception) -> str:
    """Where the rule's own code, not torch's, raised the error; empty if the call does not match `fuse`."""
    torchs = str(Path(torch.__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename != __file__ and not frame.filename.startswith(torchs)]
    return f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""


@cache
def _warn_once(message: str) -> None:
    """Rules are tried for every task and again by the run; each warning is logged once."""
    log.warning(message)


def _described(answer: object) -> str:
    if isinstance(answer, Fused):
        return f"Fused({', '.join(map(_described, answer))})"
    return f"Tensor{list(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
