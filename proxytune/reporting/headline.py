"""The one number of a run, for the table of a sweep and for optimisers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from statistics import fmean

from proxytune.errors import UserError, unknown_name
from proxytune.record import Record, TaskRecord
from proxytune.reporting.tables import best_fused


def headline_arm(record: Record, given: str | None, overrides: Iterable[str]) -> str | None:
    """The arm that was given, else the one that `overrides` change; None: the best fused arm of each task.

    Raises UserError for an arm that the run does not have.
    """
    arms = {arm: None for task in record.tasks.values() for arm in task.arms}
    if given is not None:
        if given not in arms:
            raise unknown_name("arm in headline", given, arms)
        return given
    changed = {match[1] for override in overrides if (match := re.match(r"\+*arms\.([^.=]+)\.", override))}
    return changed.pop() if len(changed) == 1 and changed <= arms.keys() else None


def arm_of(task: TaskRecord, arm: str | None) -> str | None:
    """The arm whose score stands for the task; None where it has none."""
    name = next(iter(best_fused(task)), None) if arm is None else arm
    return name if name in task.arms and task.arms[name].value is not None else None


def headline(record: Record, arm: str | None) -> float:
    """The mean over the tasks of the arm's scores; lower-is-better scores count negatively, so that more is better.

    Raises UserError where no task has such a score.
    """
    scores = []
    for task in record.tasks.values():
        name = arm_of(task, arm)
        value = None if name is None else task.arms[name].value
        if value is not None:
            scores.append(value if task.higher_is_better else -value)
    if not scores:
        raise UserError(f"headline={arm or 'null'}: no task has a score of such an arm")
    return fmean(scores)
