"""A sweep as one table: its jobs down, the tasks across. Written into the sweep's folder, and printed."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from proxytune.atomic import atomic_write
from proxytune.record import ERROR, FILE, Record, TaskRecord, read_record
from proxytune.reporting.headline import arm_of, headline_arm
from proxytune.reporting.runs import overrides_of

CSV, MARKDOWN = "sweep.csv", "sweep.md"
FIELDS = ("value", "stderr", "n", "gap_closed")


class Job(NamedTuple):
    """A job of a sweep; `record` None: it has no results, and `error` says why."""

    name: str
    overrides: Sequence[str]
    record: Record | None
    error: str = ""

    @property
    def given(self) -> dict[str, str]:
        pairs = (override.lstrip("+").partition("=") for override in self.overrides)
        return {key: value for key, _, value in pairs if key != "output"}


class Row(NamedTuple):
    label: list[str]
    """The job's name and its swept values."""
    cells: list[str]
    """One for each task."""
    best: list[bool]


class Summary(NamedTuple):
    """The table of a sweep."""

    heading: list[str]
    rows: list[Row]
    notes: list[str]
    """What became of the jobs without results, a sentence each."""


def summarise(
    folder: Path,
    jobs: Sequence[Sequence[str]],
    arm: str | None = None,
    console: Console | None = None,
) -> None:
    """Writes `sweep.csv` and `sweep.md` into the sweep's folder and prints the table, if any job has results.

    `jobs` are the overrides of each job (none: those that are in the folder, which an optimiser chose), `arm` is the
    one to show (None: the arm that the sweep changes, or the best fused arm of each task).
    """
    found = list(_found(folder, jobs))
    if not any(job.record for job in found):
        return
    table = _summary(found, arm)
    _write(folder / MARKDOWN, _markdown(table))
    _write(folder / CSV, _csv(found, _swept(found)))
    _show(table, console or Console())


def summary_of(folder: Path, arm: str | None = None) -> Summary | None:
    """The table of the sweep that was done in the folder; None if there was none."""
    return _summary(list(_found(folder, ())), arm) if (folder / CSV).exists() else None


def _summary(jobs: Sequence[Job], arm: str | None) -> Summary:
    keys = _swept(jobs)
    tasks = list(dict.fromkeys(task for job in jobs if job.record for task in job.record.tasks))
    shown = {job.name: headline_arm(job.record, arm, keys) for job in jobs if job.record}
    rows = [_row(job, keys, tasks, jobs, shown) for job in jobs]
    notes = [f"Job {job.name} ({' '.join(job.overrides)}) failed: {job.error}" for job in jobs if job.record is None]
    return Summary(["job", *keys, *tasks], rows, notes)


def _found(folder: Path, jobs: Sequence[Sequence[str]]) -> Iterator[Job]:
    """The jobs, wherever in the folder and in whatever process they were done."""
    notes = sorted((path.parent for path in folder.rglob(".hydra/overrides.yaml")), key=_number)
    places = {tuple(overrides_of(path.parent)): path.parent for path in notes}
    for number, job in enumerate(jobs or places):
        place = places.get(tuple(job))
        name = str(number) if place is None else str(place.relative_to(folder))
        error = "it did not begin" if place is None else _error(place)
        yield Job(name, job, None if place is None or error else read_record(place), error)


def _error(place: Path) -> str:
    """Why a job has no results; empty if it has."""
    if (place / ERROR).exists():
        return (place / ERROR).read_text(encoding="utf-8").strip()
    return "" if (place / FILE).exists() else "it did not end"


def _number(path: Path) -> tuple[int, str]:
    name = path.parent.name
    return int(name) if name.isdecimal() else 0, str(path)


def _swept(jobs: Sequence[Job]) -> list[str]:
    """The keys whose values differ between the jobs."""
    keys = dict.fromkeys(key for job in jobs for key in job.given)
    return [key for key in keys if len({job.given.get(key) for job in jobs}) > 1]


def _row(job: Job, keys: list[str], tasks: list[str], jobs: Sequence[Job], shown: Mapping[str, str | None]) -> Row:
    cells, best = [], []
    for task in tasks:
        values = {one.name: value for one in jobs if (value := _value(one, task, shown)) is not None}
        record = job.record.tasks.get(task) if job.record else None
        cells.append("–" if record is None else _text(record, shown[job.name]))
        higher = next(
            one.record.tasks[task].higher_is_better for one in jobs if one.record and task in one.record.tasks
        )
        best.append(job.name in values and values[job.name] == (max if higher else min)(values.values()))
    return Row([job.name, *(job.given.get(key, "") for key in keys)], cells, best)


def _value(job: Job, task: str, shown: Mapping[str, str | None]) -> float | None:
    record = job.record.tasks.get(task) if job.record else None
    name = None if record is None else arm_of(record, shown[job.name])
    return None if record is None or name is None else record.arms[name].value


def _text(task: TaskRecord, arm: str | None) -> str:
    """Score ± error, in percent where it is a fraction; which arm it is, where that is each task's best."""
    name = arm_of(task, arm)
    if name is None:
        return "–"
    entry, scale, digits = task.arms[name], *((100, 1) if task.is_fraction else (1, 3))
    error = "" if entry.stderr is None else f" ± {entry.stderr * scale:.{digits}f}"
    return f"{(entry.value or 0.0) * scale:.{digits}f}{error}{'' if arm else f' {name}'}"


def _markdown(table: Summary) -> str:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    body = [
        line([*row.label, *(f"**{text}**" if best else text for text, best in zip(row.cells, row.best, strict=True))])
        for row in table.rows
    ]
    rule = "|" + "---|" * len(table.heading)
    return "\n".join([line(table.heading), rule, *body, *(f"\n{note}" for note in table.notes)]) + "\n"


def _csv(jobs: Sequence[Job], keys: list[str]) -> str:
    """A row for each job, task and arm, with full digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["job", *keys, "task", "arm", "metric", *FIELDS])
    for job in jobs:
        for name, task in job.record.tasks.items() if job.record else ():
            for arm, entry in task.arms.items():
                values = [getattr(entry, field) for field in FIELDS]
                writer.writerow([job.name, *(job.given.get(key, "") for key in keys), name, arm, task.metric, *values])
    return text.getvalue()


def _show(summary: Summary, console: Console) -> None:
    table = RichTable(title="The sweep", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(summary.heading):
        table.add_column(
            Text(name), justify="left" if number < len(summary.rows[0].label) else "right", overflow="fold"
        )
    for row in summary.rows:
        cells = (Text(text, "bold green" if best else "") for text, best in zip(row.cells, row.best, strict=True))
        table.add_row(*map(Text, row.label), *cells)
    console.print(table)
    for note in summary.notes:
        console.print(Text(note, style="dim"))


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text)
