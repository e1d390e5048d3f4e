"""What a fusion rule is, and the one way to call it. Shapes: V tokens, T experts, `...` any rows and positions."""

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
"""What a rule may take, and what it takes unless it has `inputs`."""
_TRIAL_TOKENS = 1000
_DEPENDS_ON_LOGITS = (ArithmeticError, IndexError, RuntimeError)
"""Errors of a trial that real logits may not raise: too few tokens, or a division by what is 0 for equal logits."""


class Fused(NamedTuple):
    """The fused logits, and the weight that the rule gave each expert."""

    logits: Tensor
    """[..., V], float32, not normalised."""
    weights: Tensor
    """[T, ...], float32: the alpha of each expert at each position."""


class RuleBug(ValueError):
    """A rule raised what no logits can make right: the rule, the error and its place in one line."""


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
    """Calls the rule once, on zeros over 1,000 tokens, so that its mistakes show before any model loads.

    Raises ValueError for a number of experts that the rule refuses and for an answer that is not one of a rule, and
    RuleBug for any other error. A rule may need the real vocabulary, or logits that differ: an ArithmeticError,
    IndexError or RuntimeError (torch's for shapes) is a warning in the log instead, and real logits decide.
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
    """Where the rule's own code raised the error, torch's code left out; empty for a call that does not fit `fuse`."""
    torchs = str(Path(torch.__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename != __file__ and not frame.filename.startswith(torchs)]
    return f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""


@cache
def _warn_once(message: str) -> None:
    """A rule is tried out for every task and again by the run."""
    log.warning(message)


def _described(answer: object) -> str:
    if isinstance(answer, Fused):
        return f"Fused({', '.join(map(_described, answer))})"
    return f"Tensor{list(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
