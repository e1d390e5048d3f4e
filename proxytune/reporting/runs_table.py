"""The table of `proxytune runs list`: a row for each run and task, with the keys that differ as columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from proxytune.record import Record, TaskRecord
from proxytune.reporting.columns import scale_and_digits
from proxytune.reporting.tables import best_fused

COLUMNS = 3
"""At most so many keys are columns of their own; the others share one."""
NO_DIFFERENCE = {"output", "tags", "note", "store", "report", "logger", "headline"}
"""Keys that are not what a run is about, or are shown apart."""


class ListedRun(NamedTuple):
    """A finished run, as it is listed."""

    results: Path
    record: Record
    given: Mapping[str, str]
    """Key -> value, of its command line."""

    @property
    def name(self) -> str:
        return str(self.results.parent)

    @property
    def finished(self) -> datetime:
        return datetime.fromtimestamp(self.results.stat().st_mtime)

    @property
    def tags(self) -> str:
        return ", ".join(map(str, (self.record.provenance.config or {}).get("tags") or ()))

    @property
    def note(self) -> str:
        return str((self.record.provenance.config or {}).get("note") or "")


def listing(runs: Sequence[ListedRun], task: str = "") -> tuple[RichTable, list[str]]:
    """The table, of the tasks whose names begin with `task`, and what must be said below it."""
    keys = _differing(runs)
    labels = {key: _label(key, keys[:COLUMNS]) for key in keys[:COLUMNS]}
    columns = _columns(runs, labels, keys[COLUMNS:])
    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in (*columns, "task", "n", "base", "tuned", "best fused"):
        numeric = heading in ("n", "base", "tuned")
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    for run in runs:
        named = [cell(run) for cell in columns.values()]
        for number, cells in enumerate(_rows(run.record, task)):
            table.add_row(*map(Text, [*(named if number == 0 else [""] * len(named)), *cells]))
    notes = [f"{label}: {key}" for key, label in labels.items() if label != key]
    return table, [*notes, "Scores between 0 and 1 are in percent.", *_notes(runs)]


def _columns(
    runs: Sequence[ListedRun], labels: Mapping[str, str], others: Sequence[str]
) -> dict[str, Callable[[ListedRun], str]]:
    """Heading -> a run's cell, of what tells the runs apart; without what would be empty or is said already."""
    columns: dict[str, Callable[[ListedRun], str]] = {"run": lambda run: run.name}
    if not all(f"{run.finished:%Y-%m-%d}" in run.name for run in runs):
        form = "%m-%d %H:%M" if len({run.finished.year for run in runs}) == 1 else "%Y-%m-%d"
        columns["finished"] = lambda run: f"{run.finished:{form}}"
    for key, label in labels.items():
        columns[label] = partial(_value_of, key)
    if others:
        columns["other keys"] = lambda run: " ".join(f"{k}={run.given[k]}" for k in others if k in run.given)
    if any(run.tags for run in runs):
        columns["tags"] = lambda run: run.tags
    return columns


def _value_of(key: str, run: ListedRun) -> str:
    return run.given.get(key, "")


def _differing(runs: Sequence[ListedRun]) -> list[str]:
    """The keys whose values differ, first those that most runs were given."""
    counts = Counter(key for run in runs for key in run.given if key not in NO_DIFFERENCE)
    return [key for key, _ in counts.most_common() if len({run.given.get(key) for run in runs}) > 1]


def _label(key: str, keys: Sequence[str]) -> str:
    """The shortest end of `key` that is no end of another."""
    parts = key.split(".")
    ends = [".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1)]
    return next(end for end in ends if sum(f".{other}".endswith(f".{end}") for other in keys) == 1)


def _notes(runs: Sequence[ListedRun]) -> list[str]:
    return [f"{run.name}: {run.note}" for run in runs if run.note]


def _rows(record: Record, wanted: str) -> Iterator[list[str]]:
    """Task, n, base, tuned, best fused."""
    for name, task in record.tasks.items():
        if name.startswith(wanted):
            yield [name, str(task.n), *_headline(task)]
    for name, arms in record.failed.items():
        if name.startswith(wanted):
            yield [name, "", "", "", f"failed: {', '.join(arms)}"]


def _headline(task: TaskRecord) -> Iterator[str]:
    """The values of base and tuned where they are arms, and the best arm with a rule."""
    for reference in ("base", "tuned"):
        arm = task.references.get(reference)
        yield "" if arm is None else _value(task, arm)
    best = best_fused(task)
    yield f"{best[0]} {_value(task, best[0])}" if best else ""


def _value(task: TaskRecord, arm: str) -> str:
    value, (scale, digits) = task.arms[arm].value, scale_and_digits(task)
    return "–" if value is None else f"{value * scale:.{digits}f}"
