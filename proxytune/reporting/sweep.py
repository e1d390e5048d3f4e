"""A sweep: the one number of each job, for optimisers, and the table of its jobs and tasks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.text import Text

from proxytune.atomic import write_text
from proxytune.errors import UserError, unknown_name
from proxytune.record import ERROR, FILE, Record, TaskRecord, read_record
from proxytune.reporting.columns import Cell, score_text
from proxytune.reporting.configurations import by_key, overrides_of, swept_keys
from proxytune.reporting.files import markdown_row
from proxytune.reporting.tables import best_fused
from proxytune.reporting.terminal import cell_text, plain_table, show_notes

if TYPE_CHECKING:
    import pandas as pd

CSV, MARKDOWN = "sweep.csv", "sweep.md"
FIELDS = ("value", "stderr", "n", "gap_closed")


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
        if name is not None and (value := task.arms[name].value) is not None:
            scores.append(value if task.higher_is_better else -value)
    if not scores:
        raise UserError(f"headline={arm or 'null'}: no task has a score of such an arm")
    return fmean(scores)


class Job(NamedTuple):
    """A job of a sweep; `record` None: it has no results, and `error` says why."""

    name: str
    overrides: Sequence[str]
    record: Record | None
    error: str = ""

    @property
    def given(self) -> dict[str, str]:
        return {key: value for key, value in by_key(self.overrides).items() if key != "output"}


class Summary(NamedTuple):
    """The table of a sweep."""

    keys: list[str]
    """The swept ones."""
    tasks: list[str]
    rows: list[tuple[list[str], list[Cell]]]
    """Of each job its name and the values of `keys`, and a cell for each task."""
    notes: list[str]
    """What became of the jobs without results, a sentence each."""


def summarise(folder: Path, jobs: Sequence[Sequence[str]], arm: str | None = None) -> None:
    """Writes `sweep.csv` and `sweep.md` into the sweep's folder and prints the table, if any job has results.

    `jobs` are the overrides of each job (none: those that are in the folder, which an optimiser chose), `arm` is the
    one to show (None: the arm that the sweep changes, or the best fused arm of each task).
    """
    found = list(_found(folder, jobs))
    if not any(job.record for job in found):
        return
    table = _summary(found, arm)
    write_text(folder / MARKDOWN, _markdown(table))
    write_text(folder / CSV, _frame(found, table.keys).to_csv(index=False, lineterminator="\n"))
    _show(table)


def summary_of(folder: Path, arm: str | None = None) -> Summary | None:
    """The table of the sweep that was done in the folder; None if there was none."""
    return _summary(list(_found(folder, ())), arm) if (folder / CSV).exists() else None


def _summary(jobs: Sequence[Job], arm: str | None) -> Summary:
    keys = swept_keys([job.given for job in jobs])
    tasks = list(dict.fromkeys(task for job in jobs if job.record for task in job.record.tasks))
    shown = [headline_arm(job.record, arm, keys) if job.record else None for job in jobs]
    columns = [_column(jobs, shown, task) for task in tasks]
    labels = [[job.name, *(job.given.get(key, "") for key in keys)] for job in jobs]
    rows = [(label, [column[number] for column in columns]) for number, label in enumerate(labels)]
    notes = [f"Job {job.name} ({' '.join(job.overrides)}) failed: {job.error}" for job in jobs if job.record is None]
    return Summary(keys, tasks, rows, notes)


def _found(folder: Path, jobs: Sequence[Sequence[str]]) -> Iterator[Job]:
    """The jobs, wherever in the folder and by whatever process they were run."""
    notes = sorted((path.parent for path in folder.rglob(".hydra/overrides.yaml")), key=_number)
    places = {tuple(overrides_of(path.parent)): path.parent for path in notes}
    for number, job in enumerate(jobs or places):
        place = places.get(tuple(job))
        name = str(number) if place is None else str(place.relative_to(folder))
        error = "it did not begin" if place is None else _error(place)
        yield Job(name, job, None if place is None or error else read_record(place), error)


def _error(place: Path) -> str:
    """Why a job has no results; empty if it has some."""
    if (place / ERROR).exists():
        return (place / ERROR).read_text(encoding="utf-8").strip()
    return "" if (place / FILE).exists() else "it did not end"


def _number(path: Path) -> tuple[int, str]:
    name = path.parent.name
    return int(name) if name.isdecimal() else 0, str(path)


def _column(jobs: Sequence[Job], shown: Sequence[str | None], name: str) -> list[Cell]:
    """The cells of the task `name`, a job each: the score of the arm that is shown. The best jobs are marked.

    The arm is named where it is each task's best (None).
    """
    tasks = [job.record.tasks.get(name) if job.record else None for job in jobs]
    arms = [arm_of(task, arm) if task else None for task, arm in zip(tasks, shown, strict=True)]
    entries = [task.arms[arm] if task and arm else None for task, arm in zip(tasks, arms, strict=True)]
    higher = next(task.higher_is_better for task in tasks if task)
    values = [entry.value for entry in entries if entry and entry.value is not None]
    best = (max if higher else min)(values, default=None)
    cells = []
    for task, given, arm, entry in zip(tasks, shown, arms, entries, strict=True):
        text = score_text(task, entry.value, entry.stderr) + ("" if given else f" {arm}") if task and entry else "–"
        cells.append(Cell(text, best=entry is not None and entry.value == best))
    return cells


def _markdown(summary: Summary) -> str:
    heading = ["job", *summary.keys, *summary.tasks]
    rows = [markdown_row([*label, *cells]) for label, cells in summary.rows]
    notes = [f"\n{note}" for note in summary.notes]
    return "\n".join([markdown_row(heading), "|" + "---|" * len(heading), *rows, *notes]) + "\n"


def _frame(jobs: Sequence[Job], keys: Sequence[str]) -> pd.DataFrame:
    """A row for each job, task and arm, with full digits."""
    import pandas as pd

    rows = [
        [job.name, *(job.given.get(key, "") for key in keys), name, arm, task.metric]
        + [getattr(entry, field) for field in FIELDS]
        for job in jobs
        for name, task in (job.record.tasks if job.record else {}).items()
        for arm, entry in task.arms.items()
    ]
    return pd.DataFrame(rows, columns=["job", *keys, "task", "arm", "metric", *FIELDS])


def _show(summary: Summary) -> None:
    table = plain_table("The sweep")
    for name in ("job", *summary.keys):
        table.add_column(Text(name), overflow="fold")
    for name in summary.tasks:
        table.add_column(Text(name), justify="right", overflow="fold")
    for label, cells in summary.rows:
        table.add_row(*map(Text, label), *map(cell_text, cells))
    console = Console()
    console.print(table)
    show_notes(console, *summary.notes)
