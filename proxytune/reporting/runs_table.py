"""The table of `proxytune runs list`: a row for each run and task, with the keys that differ as columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from proxytune.record import Record, TaskRecord
from proxytune.reporting.columns import scale_and_digits
from proxytune.reporting.tables import best_fused, common_start

COLUMNS = 3
"""At most so many keys are columns of their own; the others share one."""
RESULTS = ("task", "n", "base", "tuned", "best fused")
SCORES = RESULTS[2:]
HEADINGS = {"run", "finished", "other keys", "tags", *RESULTS}
NO_DIFFERENCE = {"output", "task", "tags", "note", "store", "report", "logger", "headline"}
"""Keys that are not what a run is about, or are shown apart."""

Row = dict[str, str]
"""Heading -> cell."""


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
    """The table, of the tasks whose names begin with `task`, and what must be said below it.

    What is the same in all rows is said once, below, and so is what the names of all tasks begin with.
    """
    keys = _differing(runs)
    labels = {key: _label(key, keys[:COLUMNS]) for key in keys[:COLUMNS]}
    columns = _columns(runs, labels, keys[COLUMNS:])
    rows = [
        {name: cell(run) for name, cell in columns.items()} | dict(zip(RESULTS, cells, strict=True))
        for run in runs
        for cells in _rows(run.record, task)
    ]
    start = common_start(list(dict.fromkeys(row["task"] for row in rows)))
    same = _same(rows) if len(runs) > 1 else {}
    headings = [heading for heading in (*columns, *RESULTS) if heading not in same]
    notes = [f"{label}: {key}" for key, label in labels.items() if label != key]
    notes += [f"In all rows: {', '.join(f'{heading} {value}' for heading, value in same.items())}."] if same else []
    notes += [f"The names of all tasks begin with {start}."] if start else []
    notes += ["Scores between 0 and 1 are in percent.", *(f"{run.name}: {run.note}" for run in runs if run.note)]
    return _table(headings, columns, [{**row, "task": row["task"].removeprefix(start)} for row in rows]), notes


def _same(rows: Sequence[Row]) -> Row:
    """The cells that are the same in all rows, scores aside."""
    same = dict(rows[0]) if rows else {}
    for row in rows:
        same = {heading: value for heading, value in same.items() if row[heading] == value}
    return {heading: value for heading, value in same.items() if value and heading not in SCORES}


def _table(headings: Sequence[str], of_run: Collection[str], rows: Sequence[Row]) -> RichTable:
    """What is `of_run` stands in the first of a run's rows."""
    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in headings:
        numeric = heading in ("n", "base", "tuned")
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    before = None
    for row in rows:
        repeated = of_run if row["run"] == before else ()
        table.add_row(*(Text("" if heading in repeated else row[heading]) for heading in headings))
        before = row["run"]
    return table


def _columns(
    runs: Sequence[ListedRun], labels: Mapping[str, str], others: Sequence[str]
) -> dict[str, Callable[[ListedRun], str]]:
    """Heading -> a run's cell, of what tells the runs apart; without what would be empty or is said already."""
    form = "%m-%d %H:%M" if len({run.finished.year for run in runs}) == 1 else "%Y-%m-%d"
    columns: dict[str, Callable[[ListedRun], str]] = {"run": lambda run: run.name}
    if not all(f"{run.finished:%Y-%m-%d}" in run.name for run in runs):
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
    """The shortest end of `key` that is no end of another and no other heading."""
    parts = key.split(".")
    ends = [".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1)]
    alone = (end for end in ends if sum(f".{other}".endswith(f".{end}") for other in keys) == 1)
    return next((end for end in alone if end not in HEADINGS), key)


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
