"""What stood behind each token of an answer, noted while decoding for the requests that ask for it.

Shapes: B rows of one member, n branches of one arm, V vocabulary, K = `TOP` likeliest tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from proxytune.engines.requests import TopTokens, Trace
from proxytune.fusion.arm import Arm
from proxytune.models.distinct import DistinctMembers

if TYPE_CHECKING:
    from proxytune.engines.hf.decode import Branch

TOP = 5
DECIMALS = 6
"""Of probabilities."""


class _Step(NamedTuple):
    """One token."""

    p: float
    p_base: float | None
    base_choice: int | None
    top: dict[str, TopTokens]


class Tracer:
    """Begins each step with `look`, notes what every arm chooses, and has the trace of a finished answer."""

    def __init__(self, members: DistinctMembers) -> None:
        self.members = members
        self._rows: dict[str, _Rows] = {}
        self._steps: dict[tuple[int, str], list[_Step]] = defaultdict(list)
        """By request index and arm."""

    def look(self, logits: Mapping[str, Tensor]) -> None:
        """The logits of the step: [B, V] by the role that runs. They are looked at once for all arms, if at all."""
        self._rows = {role: _Rows(some) for role, some in logits.items()}

    def note(self, arm: Arm, branches: Sequence[Branch], fused: Tensor, tokens: Tensor) -> None:
        """The arm's branches, its logits [n, V] after them and the tokens [n] that it takes."""
        traced = [n for n, branch in enumerate(branches) if branch.pending.request.trace != "none"]
        if not traced:
            return
        branches = [branches[n] for n in traced]
        fused, tokens = _part(fused, traced), _part(tokens, traced).clamp(min=0)  # a token may be undefined
        own = _Rows(fused)
        p = own.probabilities(range(len(traced)), tokens)
        p_base, choice = self._of_base(arm, branches, tokens)
        full = any(branch.pending.request.trace == "full" for branch in branches)
        for n, branch in enumerate(branches):
            top = self._top(arm, branch, own.top[n]) if full else {}
            self._steps[branch.pending.index, arm.name].append(_Step(p[n], p_base[n], choice[n], top))

    def trace(self, branch: Branch, arm: Arm) -> Trace | None:
        """Of the answer that ends with `branch`; None where none is asked for."""
        if branch.pending.request.trace == "none":
            return None
        steps = self._steps.pop((branch.pending.index, arm.name), [])[: len(branch.tokens)]
        names = ["fused", *(arm.roles if arm.rule else ())] if branch.pending.request.trace == "full" else []
        return Trace(
            p=tuple(step.p for step in steps),
            p_base=tuple(step.p_base for step in steps if step.p_base is not None),
            base_choice=tuple(step.base_choice for step in steps if step.base_choice is not None),
            top={name: tuple(step.top[name] for step in steps) for name in names},
        )

    def _of_base(
        self, arm: Arm, branches: Sequence[Branch], tokens: Tensor
    ) -> tuple[Sequence[float | None], Sequence[int | None]]:
        """The base's probability of each token, and its own choice; None for a model alone."""
        if arm.rule is None:
            return [None] * len(branches), [None] * len(branches)
        role = self.members.of[arm.base]
        rows = [branch.row[role] for branch in branches]
        base = self._rows[role]
        return base.probabilities(rows, tokens), [base.choices[row] for row in rows]

    def _top(self, arm: Arm, branch: Branch, fused: TopTokens) -> dict[str, TopTokens]:
        """By role, and "fused"."""
        of = self.members.of
        roles = arm.roles if arm.rule else ()
        return {"fused": fused, **{role: self._rows[of[role]].top[branch.row[of[role]]] for role in roles}}


class _Rows:
    """Logits [B, V] of one model, or of one arm, at one step."""

    def __init__(self, logits: Tensor) -> None:
        self._given = logits

    @cached_property
    def logits(self) -> Tensor:
        return self._given.float()

    @cached_property
    def total(self) -> Tensor:
        """[B] the logarithm of the softmax's denominator."""
        return self.logits.logsumexp(-1)

    @cached_property
    def choices(self) -> list[int]:
        """[B] the likeliest tokens."""
        return self.logits.argmax(-1).tolist()

    @cached_property
    def top(self) -> list[TopTokens]:
        """[B][K] the likeliest tokens, each with its probability."""
        largest = self.logits.topk(min(TOP, self.logits.shape[-1]))
        p = _rounded((largest.values - self.total[:, None]).exp())
        return [tuple(zip(*row, strict=True)) for row in zip(largest.indices.tolist(), p, strict=True)]

    def probabilities(self, rows: Sequence[int], tokens: Tensor) -> list[float]:
        """[n] of the tokens [n], each in its row."""
        rows = list(rows)
        return _rounded((self.logits[rows, tokens] - self.total[rows]).exp())


def _part(values: Tensor, rows: Sequence[int]) -> Tensor:
    return values if len(rows) == len(values) else values[rows]


def _rounded(p: Tensor) -> list:
    return p.double().round(decimals=DECIMALS).tolist()
