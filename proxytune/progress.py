"""The progress of a run: the experiment records it as it works, and displays and trackers read it.

A run has tasks, a task has arms. Progress is only for display; results come from the record.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass
class ArmProgress:
    """One arm on one task."""

    items: int = 0
    """Items answered, those from the store included."""
    value: float | None = None
    """Mean of the headline metric over the items scored so far; None: there are none."""
    stderr: float | None = None
    """Its standard error; None with fewer than two items."""
    failed: bool = False
    _scored: int = 0
    _squares: float = 0.0
    """Sum of squared deviations from the mean (Welford)."""

    def add(self, value: float | None) -> None:
        """One more item is answered; `value` None or NaN: it has no score yet."""
        self.items += 1
        if value is None or not math.isfinite(value):
            return
        self._scored += 1
        before = self.value or 0.0
        self.value = before + (value - before) / self._scored
        self._squares += (value - before) * (value - self.value)
        if self._scored > 1:
            self.stderr = math.sqrt(self._squares / (self._scored - 1) / self._scored)


@dataclass
class TaskProgress:
    """One task with all its arms."""

    metric: str
    arms: dict[str, ArmProgress]
    scale: float = 1.0
    """What values are shown times: 100 for a fraction."""
    items: int | None = None
    """Items of the task; None: not known yet."""
    answers: int = 0
    """Answers that there are, of all arms; equal ones count once."""
    answers_total: int = 0
    computed: int = 0
    """Answers that did not come from the store."""
    tokens: int = 0
    """Tokens of the computed answers, generated or scored."""
    began: float | None = None
    """When the first model ran, in seconds of the monotonic clock; None: not yet."""
    ended: float | None = None

    @property
    def seconds(self) -> float:
        """Since the task began."""
        return 0.0 if self.began is None else (self.ended or time.monotonic()) - self.began

    @property
    def tokens_per_second(self) -> float | None:
        return self.tokens / self.seconds if self.tokens and self.seconds else None

    @property
    def seconds_left(self) -> float | None:
        """Until all answers are there, at the pace so far; None: no pace yet."""
        if not self.computed or self.ended is not None:
            return None
        return self.seconds / self.computed * (self.answers_total - self.answers)

    def end(self, results: Mapping[str, tuple[float | None, float | None]]) -> None:
        """The task is done: arm -> value and standard error. Arms that are not among them failed."""
        self.ended = time.monotonic()
        for name, arm in self.arms.items():
            arm.failed = name not in results
            arm.value, arm.stderr = results.get(name, (None, None))
            arm.items = self.items or 0


@dataclass
class Progress:
    """A run with all its tasks."""

    tasks: dict[str, TaskProgress]
    changed: Callable[[Progress], object] = lambda progress: None
    """Is called after each change, in the thread that made it, and should be quick."""
    began: float = field(default_factory=time.monotonic)

    @property
    def answers(self) -> int:
        return sum(task.answers for task in self.tasks.values())

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began
