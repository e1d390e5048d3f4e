"""The probabilities behind each token of an answer, recorded while decoding for the requests that ask for them.

Shapes: B rows of one member, t positions of each, n places where one arm has chosen, V vocabulary, K = `TOP`
likeliest tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from proxytune.engines.hf.batching import Pending
from proxytune.engines.requests import GenerateRequest, TopTokens, Trace
from proxytune.fusion.arm import Arm
from proxytune.models.distinct import DistinctMembers

if TYPE_CHECKING:
    from proxytune.engines.hf.branch import Place

TOP = 5
DECIMALS = 6
"""The number of decimals of probabilities."""


class _Step(NamedTuple):
    """The record of one token."""

    p: float
    p_base: float | None
    differs: bool | None
    top: dict[str, TopTokens]


class Tracer:
    """Takes the logits of each step by `look`, records the arms' choices by `note`, and returns an answer's `trace`."""

    def __init__(self, members: DistinctMembers) -> None:
        self.members = members
        self._rows: dict[str, _StepLogits] = {}
        self._steps: dict[tuple[int, str], list[_Step]] = defaultdict(list)
        """By request index and arm name."""

    def look(self, logits: Mapping[str, Tensor]) -> None:
        """Stores the step's logits, [B, t, V] by the role that runs. They are processed at most once for all arms."""
        self._rows = {role: _StepLogits(some) for role, some in logits.items()}

    def note(self, arm: Arm, places: Sequence[Place], taken: Sequence[int], fused: Tensor, ids: Sequence[int]) -> None:
        """Records the tokens that are `taken` into the arm's answers, from its places, logits [n, V] and tokens [n]."""
        traced = [n for n in taken if places[n].branch.pending.request.trace != "none"]
        if not traced:
            return
        places = [places[n] for n in traced]
        tokens = torch.tensor([max(ids[n], 0) for n in traced], device=fused.device)  # a token may be undefined
        own, rows = self._own(arm, places, _part(fused, traced))
        p = own.probabilities(rows, tokens)
        p_base, differs = self._of_base(arm, places, tokens)
        full = any(place.branch.pending.request.trace == "full" for place in places)
        for n, place in enumerate(places):
            top = self._top(arm, place, own.top[rows[n]]) if full else {}
            self._steps[place.branch.pending.index, arm.name].append(_Step(p[n], p_base[n], differs[n], top))

    def trace(self, pending: Pending[GenerateRequest], arm: Arm, tokens: int) -> Trace | None:
        """The trace of the arm's answer, which has `tokens` tokens; None if the request asks for none."""
        if pending.request.trace == "none":
            return None
        steps = self._steps.pop((pending.index, arm.name), [])[:tokens]
        names = ["fused", *(arm.roles if arm.rule else ())] if pending.request.trace == "full" else []
        return Trace(
            p=tuple(step.p for step in steps),
            p_base=tuple(step.p_base for step in steps if step.p_base is not None),
            differs=tuple(step.differs for step in steps if step.differs is not None),
            top={name: tuple(step.top[name] for step in steps) for name in names},
        )

    def _own(self, arm: Arm, places: Sequence[Place], fused: Tensor) -> tuple[_StepLogits, list[int]]:
        """The arm's logits and the row of each place in them; for a single model these are the logits of its role."""
        if arm.rule is not None:
            return _StepLogits(fused[:, None]), list(range(len(places)))
        role = self.members.of[arm.base]
        return self._rows[role], self._rows[role].at(role, places)

    def _of_base(
        self, arm: Arm, places: Sequence[Place], tokens: Tensor
    ) -> tuple[Sequence[float | None], Sequence[bool | None]]:
        """The base's probability of each token, and whether it prefers another token; None for a single model."""
        if arm.rule is None:
            return [None] * len(places), [None] * len(places)
        role = self.members.of[arm.base]
        base, rows = self._rows[role], self._rows[role].at(role, places)
        return base.probabilities(rows, tokens), base.likelier(rows, tokens)

    def _top(self, arm: Arm, place: Place, fused: TopTokens) -> dict[str, TopTokens]:
        """The likeliest tokens at the place by role, and under "fused" those of the arm."""
        top = {"fused": fused}
        for role in arm.roles if arm.rule else ():
            runs = self.members.of[role]
            top[role] = self._rows[runs].top[self._rows[runs].at(runs, [place])[0]]
        return top


class _StepLogits:
    """The logits [B, t, V] of one model or one arm at one step, as rows [B t, V]."""

    def __init__(self, logits: Tensor) -> None:
        self._given = logits
        self._positions = logits.shape[1]

    def at(self, role: str, places: Sequence[Place]) -> list[int]:
        """The row of each place."""
        return [place.branch.row[role] * self._positions + place.position for place in places]

    @cached_property
    def logits(self) -> Tensor:
        return self._given.flatten(0, 1).float()

    @cached_property
    def highest(self) -> Tensor:
        """[B t] the largest logits."""
        return self.logits.amax(-1)

    @cached_property
    def log_p(self) -> Tensor:
        return self.logits.log_softmax(-1)

    @cached_property
    def top(self) -> list[TopTokens]:
        """[B t][K] the likeliest tokens, each with its probability."""
        largest = self.log_p.topk(min(TOP, self.log_p.shape[-1]))
        p = _rounded(largest.values.exp())
        return [tuple(zip(*row, strict=True)) for row in zip(largest.indices.tolist(), p, strict=True)]

    def probabilities(self, rows: Sequence[int], tokens: Tensor) -> list[float]:
        """[n] the probability of each of `tokens` [n], in its row."""
        return _rounded(self.log_p[rows, tokens].exp())

    def likelier(self, rows: Sequence[int], tokens: Tensor) -> list[bool]:
        """[n] whether another token is more likely than that of `tokens` [n]."""
        return (self.logits[rows, tokens] < self.highest[rows]).tolist()


def _part(values: Tensor, rows: Sequence[int]) -> Tensor:
    return values if len(rows) == len(values) else values[rows]


def _rounded(p: Tensor) -> list:
    return p.double().round(decimals=DECIMALS).tolist()
