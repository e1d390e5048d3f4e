"""How several runs differ in their configurations and scores, and the paired differences of each run's arms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from proxytune.record import Estimate, Record, TaskRecord
from proxytune.reporting.columns import COLUMNS, Cell, Column, Notes, score_text
from proxytune.reporting.configurations import differing
from proxytune.reporting.report.source import Run
from proxytune.reporting.tables import Table, cell_of, in_order

REFERENCES = ("base", "expert", "tuned")


def names(runs: Sequence[Run]) -> list[str]:
    """A name for each run: the overrides that not all of them have, or its folder where these are not distinct."""
    shared = set.intersection(*(set(run.overrides) for run in runs)) if len(runs) > 1 else set()
    given = [", ".join(_short(override) for override in run.overrides if override not in shared) for run in runs]
    if len(runs) > 1 and all(given) and len(set(given)) == len(runs):
        return given
    folders = [run.folder.resolve().name for run in runs]
    return folders if len(set(folders)) == len(runs) else [str(run.folder) for run in runs]


def _short(override: str) -> str:
    """`arms.proxy.rule.weights=0.5` as `weights=0.5`."""
    key, equals, value = override.partition("=")
    return f"{key.rpartition('.')[2]}{equals}{value}"


def configurations(runs: Sequence[Run]) -> dict[str, list[str]]:
    """What differs in the runs' configurations, and in their versions of code and libraries."""
    made_by = [run.record.provenance for run in runs]
    versions = [{"commit": one.code.get("commit"), "libraries": one.libraries} for one in made_by]
    return differing([{**run.config, **version} for run, version in zip(runs, versions, strict=True)])


def comparisons(runs: Sequence[Run], names: Sequence[str], notes: Notes) -> list[Table]:
    """For each task and shown quantity, a table of arms down and runs across."""
    tasks = dict.fromkeys(task for run in runs for task in run.record.tasks)
    shown = [column for column in COLUMNS if column.cell is not None and not column.fused_only]
    return [_comparison(task, column, runs, names, notes) for task in tasks for column in shown]


def _comparison(task: str, column: Column, runs: Sequence[Run], names: Sequence[str], notes: Notes) -> Table:
    records = [run.record.tasks.get(task) for run in runs]
    arms = in_order({str(number): record for number, record in enumerate(records) if record})
    rows = {arm: [_cell(column, record, arm, notes) for record in records] for arm in arms}
    return Table(f"{task}: {column.title}", names, rows)


def _cell(column: Column, record: TaskRecord | None, arm: str, notes: Notes) -> Cell:
    if record is None:
        return Cell("·" + notes.mark("this run has no scores of this task"))
    return replace(cell_of(column, record, arm, notes), best=False)


def paired(record: Record) -> list[Table]:
    """For each task, every arm minus base, expert and tuned, over the same items, with the standard error."""
    return [_paired(name, task) for name, task in record.tasks.items() if task.references]


def _paired(name: str, task: TaskRecord) -> Table:
    references = [reference for reference in REFERENCES if reference in task.references]
    rows = {
        arm: [_difference(task, entry.differences.get(reference)) for reference in references]
        for arm, entry in ((arm, task.arms[arm]) for arm in in_order({name: task}))
    }
    unit = ", percentage points" if task.is_fraction else ""
    return Table(f"{name}: {task.metric}{unit}", [f"− {task.references[one]}" for one in references], rows)


def _difference(task: TaskRecord, difference: Estimate | None) -> Cell:
    """In bold where it is more than two standard errors from 0; a dot for an arm minus itself."""
    if difference is None or difference.value is None:
        return Cell("–")
    if difference.stderr_method == "exact":
        return Cell("·")
    text = score_text(task, difference.value, difference.stderr, "+z").replace("-", "−")
    return Cell(text, best=difference.stderr is not None and abs(difference.value) > 2 * difference.stderr)
