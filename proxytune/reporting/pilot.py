"""Whether each fused arm helps, by a run's first items, before the rest is computed."""

from __future__ import annotations

from collections.abc import Iterator

from proxytune.record import ArmRecord, Record, TaskRecord
from proxytune.reporting.columns import NORMAL_95, scale_and_digits


def pilot_lines(record: Record) -> Iterator[str]:
    """A line for each task and fused arm: its gain over the base, with a 95 % interval, and what follows from it.

    A gain is positive where the arm is better, whatever the metric's direction.
    """
    for name, task in record.tasks.items():
        fused = {arm: entry for arm, entry in task.arms.items() if entry.rule is not None}
        if "base" not in task.references:
            yield f"pilot, {name}: no arm is the plain base, with which the others would be compared"
            continue
        for arm, entry in fused.items():
            yield f"pilot, {name}, {task.n} items: {arm} {_said(task, entry)}"


def _said(task: TaskRecord, entry: ArmRecord) -> str:
    estimate = entry.differences["base"]
    if estimate.value is None or estimate.stderr is None:
        return "cannot be compared with the base: fewer than two items are valid for both"
    scale, digits = scale_and_digits(task)
    sign = scale if task.higher_is_better else -scale
    gain, half = sign * estimate.value, NORMAL_95 * scale * estimate.stderr
    low, high = gain - half, gain + half
    verdict = "helps" if low > 0 else "harms" if high < 0 else "may help or harm: too few items to tell"
    return f"{verdict} (gain over the base {gain:+.{digits}f}, 95 % interval {low:+.{digits}f} to {high:+.{digits}f})"
