"""Which answers have a trace (`engines.requests.Trace`), and whether one lacks it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from proxytune.engines.requests import Answer, Generated, GenerateRequest, Request, TraceLevel
from proxytune.errors import UserError


@dataclass(frozen=True)
class Tracing:
    """Which generated answers keep a trace."""

    level: TraceLevel = "none"
    items: int | None = 100
    """The number of items of each task, from the first; None: all."""
    missing: Literal["recompute", "report"] = "recompute"
    """What becomes of an answer that the store has without its trace: it is computed again, with its whole block, or
    the record counts it."""

    def __post_init__(self) -> None:
        for name, allowed in (("level", get_args(TraceLevel)), ("missing", ("recompute", "report"))):
            if getattr(self, name) not in allowed:
                key = "trace" if name == "level" else f"trace_{name}"
                raise UserError(f"{key}={getattr(self, name)} is not allowed: it is one of {', '.join(allowed)}")
        if self.items is not None and self.items < 1:
            raise UserError(f"trace_items={self.items} is not allowed: it is an integer from 1, or null for all items")

    def first(self, items: Iterable[int]) -> list[int]:
        """Those of a task's items that are traced."""
        return [] if self.level == "none" else sorted(set(items))[: self.items]


def lacks_trace(request: Request, answer: Answer) -> bool:
    """Whether `answer` has less of a trace than `request` asks for."""
    if not isinstance(request, GenerateRequest) or request.trace == "none" or not isinstance(answer, Generated):
        return False
    return answer.trace is None or (request.trace == "full" and not answer.trace.top)


NO_TRACES = Tracing()
