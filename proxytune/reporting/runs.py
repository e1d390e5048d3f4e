"""The runs in a folder and their results."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from proxytune.errors import UserError
from proxytune.record import FILE, Record, TaskRecord, read_record
from proxytune.reporting.columns import score_text
from proxytune.reporting.configurations import by_key, overrides_of, swept_keys
from proxytune.reporting.speeds import speeds
from proxytune.reporting.tables import best_fused, common_start
from proxytune.reporting.terminal import plain_table, show, show_notes

KEY_COLUMNS = 3
"""The most keys that have their own columns; the others share one."""
RESULTS = ("task", "n", "base", "tuned", "best fused")
SCORES = RESULTS[2:]
HEADINGS = {"run", "finished", "other keys", "tags", *RESULTS}
NO_DIFFERENCE = {"output", "task", "tags", "note", "store", "report", "logger", "headline"}
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
    def config(self) -> Mapping[str, Any]:
        return self.record.provenance.config or {}

    def value(self, key: str) -> str | None:
        """The value of a key of its configuration as a command line has it; None where it has no such key."""
        value: Any = self.config
        for part in key.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return None
            value = value[part]
        return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)

    def has(self, key: str, value: str) -> bool:
        """Whether it has this tag, a task whose name begins so, or this value of another key."""
        if key == "tag":
            return value in (self.config.get("tags") or ())
        if key == "task":
            return any(task.startswith(value) for task in self.record.tasks)
        return self.value(key) == value


def show_run(folder: str | Path) -> None:
    """Prints the tables of a finished run again, and how fast its answers were computed."""
    record, console = read_record(folder), Console()
    show(record, console)
    show_notes(console, *speeds(record))


def list_runs(
    folder: str | Path,
    console: Console | None = None,
    wanted: Mapping[str, str] | None = None,
    sort: str | None = None,
) -> None:
    """Prints the finished runs under `folder`, the oldest first, with their tasks; raises UserError if there are none.

    Only those that have all that is `wanted` (see `ListedRun.has`), and in the order of the key `sort`, if given.
    A run is told apart by its folder, when it was finished, and the keys whose values are not the same in all of them.
    """
    console, wanted = console or Console(), wanted or {}
    paths = sorted(Path(folder).rglob(FILE), key=lambda path: path.stat().st_mtime)
    if not paths:
        raise UserError(f"{folder}: no finished run (no {FILE}) in or under this folder")
    runs, faults = [], []
    for path in paths:
        try:
            runs.append(ListedRun(path, read_record(path), by_key(overrides_of(path.parent))))
        except UserError as error:
            faults.append(str(error))
    chosen = [run for run in runs if all(run.has(key, value) for key, value in wanted.items())]
    if runs and not chosen:
        asked = " ".join(f"{key}={value}" for key, value in wanted.items())
        raise UserError(f"{folder}: none of {len(runs)} finished runs has {asked}")
    table, notes = _listing(chosen if sort is None else _sorted(chosen, sort), wanted.get("task", ""))
    console.print(table)
    show_notes(console, *notes, *faults)


def _sorted(runs: Sequence[ListedRun], key: str) -> list[ListedRun]:
    """By the value of a key of their configurations: numbers, then texts, then the runs that lack it."""
    if all(run.value(key) is None for run in runs):
        raise UserError(f"sort={key}: no run has this key in its configuration")
    return sorted(runs, key=lambda run: _rank(run.value(key)))


def _rank(value: str | None) -> tuple[int, float, str]:
    if value is None:
        return 2, 0.0, ""
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    return (1, 0.0, value) if math.isnan(number) else (0, number, "")


def _listing(runs: Sequence[ListedRun], task: str) -> tuple[RichTable, list[str]]:
    """The table of the tasks whose names begin with `task`, and the lines below it.

    What is the same in all rows is said once, below, and so is what the names of all tasks begin with.
    """
    keys = _differing(runs)
    labels = {key: _label(key, keys[:KEY_COLUMNS]) for key in keys[:KEY_COLUMNS]}
    dates = _date_format(runs)
    of_run = [_cells(run, labels, keys[KEY_COLUMNS:], dates) for run in runs]
    columns = ["run", "finished", *labels.values(), "other keys", "tags"]
    columns = [heading for heading in columns if any(cells[heading] for cells in of_run)]
    rows = [
        cells | dict(zip(RESULTS, results, strict=True))
        for run, cells in zip(runs, of_run, strict=True)
        for results in _results(run.record, task)
    ]
    start = common_start(list(dict.fromkeys(row["task"] for row in rows)))
    same = _same(rows) if len(runs) > 1 else {}
    headings = [heading for heading in (*columns, *RESULTS) if heading not in same]
    notes = [f"{label}: {key}" for key, label in labels.items() if label != key]
    notes += [f"In all rows: {', '.join(f'{heading} {value}' for heading, value in same.items())}."] if same else []
    notes += [f"The names of all tasks begin with {start}."] if start else []
    notes += ["Scores between 0 and 1 are in percent."]
    notes += [f"{run.name}: {run.config['note']}" for run in runs if run.config.get("note")]
    return _table(headings, columns, [{**row, "task": row["task"].removeprefix(start)} for row in rows]), notes


def _differing(runs: Sequence[ListedRun]) -> list[str]:
    """The keys whose values differ, first those that most runs were given."""
    keys = [key for key in swept_keys([run.given for run in runs]) if key not in NO_DIFFERENCE]
    return sorted(keys, key=lambda key: -sum(key in run.given for run in runs))


def _label(key: str, keys: Sequence[str]) -> str:
    """The shortest end of `key` that is no end of another and no other heading."""
    parts = key.split(".")
    ends = [".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1)]
    alone = (end for end in ends if sum(f".{other}".endswith(f".{end}") for other in keys) == 1)
    return next((end for end in alone if end not in HEADINGS), key)


def _date_format(runs: Sequence[ListedRun]) -> str:
    """Empty where the runs' folders are named by date."""
    if all(f"{run.finished:%Y-%m-%d}" in run.name for run in runs):
        return ""
    return "%m-%d %H:%M" if len({run.finished.year for run in runs}) == 1 else "%Y-%m-%d"


def _cells(run: ListedRun, labels: Mapping[str, str], others: Sequence[str], dates: str) -> dict[str, str]:
    """Heading -> cell, of what tells the runs apart."""
    return {
        "run": run.name,
        "finished": run.finished.strftime(dates),
        **{label: run.given.get(key, "") for key, label in labels.items()},
        "other keys": " ".join(f"{key}={run.given[key]}" for key in others if key in run.given),
        "tags": ", ".join(map(str, run.config.get("tags") or ())),
    }


def _results(record: Record, wanted: str) -> Iterator[list[str]]:
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
        yield "" if arm is None else score_text(task, task.arms[arm].value)
    best = next(iter(best_fused(task)), None)
    yield "" if best is None else f"{best} {score_text(task, task.arms[best].value)}"


def _same(rows: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The cells that are the same in all rows, scores aside."""
    first = rows[0] if rows else {}
    alike = {heading: value for heading, value in first.items() if all(row[heading] == value for row in rows)}
    return {heading: value for heading, value in alike.items() if value and heading not in SCORES}


def _table(headings: Sequence[str], of_run: Collection[str], rows: Sequence[Mapping[str, str]]) -> RichTable:
    """What is `of_run` stands in the first of a run's rows."""
    table = plain_table()
    table.collapse_padding = True
    for heading in headings:
        numeric = heading in ("n", "base", "tuned")
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    before = None
    for row in rows:
        repeated = of_run if row["run"] == before else ()
        table.add_row(*(Text("" if heading in repeated else row[heading]) for heading in headings))
        before = row["run"]
    return table
