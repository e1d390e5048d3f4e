"""Runs side by side: how their configurations differ, and paired differences of their arms over the same items."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from proxytune.errors import UserError
from proxytune.record import Estimate, Record, TaskRecord, read_record
from proxytune.reporting.columns import NORMAL_95, scale_and_digits
from proxytune.reporting.configurations import differing
from proxytune.statistics import Design, Values, are_fractions, as_values, groups, paired_difference

Items = Mapping[str, Mapping[str, Any]]
"""Rows of an items' file by item and prompt: an item of the same number but with another prompt is another item."""


def compare_runs(folders: Sequence[str], console: Console | None = None) -> None:
    """Prints what differs in the configurations, and for each other run, task and arm the difference to the first run.

    Raises UserError for a run that cannot be read, and if no two runs share a task.
    """
    console = console or Console()
    first, *others = [(Path(folder), read_record(folder)) for folder in folders]
    _show_configurations([first, *others], console)
    tables = [table for other in others for table in _tables(first, other)]
    if not tables:
        raise UserError(f"{', '.join(folders)}: the runs have no task and arm in common")
    for table in tables:
        console.print(table)
    console.print(Text("Differences are paired over the items that both runs have; 95 % intervals.", style="dim"))


def _show_configurations(runs: Sequence[tuple[Path, Record]], console: Console) -> None:
    rows = differing([record.provenance.config or {} for _, record in runs])
    table = RichTable(title="What differs", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("key", overflow="fold")
    for path, _ in runs:
        table.add_column(Text(str(path)), overflow="fold")
    for key, values in sorted(rows.items()):
        table.add_row(Text(key), *map(Text, values))
    console.print(table if rows else Text("The configurations are the same."))
    if len({record.provenance.code.get("source") for _, record in runs}) > 1:
        console.print(Text("The runs were made by different versions of the code."))


def _tables(first: tuple[Path, Record], other: tuple[Path, Record]) -> Iterator[RichTable]:
    """One for each task that both runs have."""
    for name, task in first[1].tasks.items():
        there = other[1].tasks.get(name)
        arms = [arm for arm in task.arms if there and arm in there.arms and task.metric == there.metric]
        if there is None or not arms:
            continue
        before, after = (items_of(folder, name) for folder in (first[0], other[0]))
        title = f"{name} ({task.metric}): {other[0]} − {first[0]}"
        table = RichTable(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        for heading in ("arm", "first", "second", "difference", "n"):
            table.add_column(heading, justify="left" if heading == "arm" else "right")
        for arm in arms:
            found = difference(task, before, after, arm)
            table.add_row(Text(arm), _value(task, arm), _value(there, arm), _text(task, found), str(found.n))
        yield table


def difference(task: TaskRecord, first: Items, second: Items, arm: str) -> Estimate:
    """The arm's score in `second` minus that in `first`, over the items of both, as a record has differences of arms.

    Without an error where the items' files do not have what the task's items are grouped by (older runs).
    """
    rows = [(row, second[key]) for key, row in first.items() if key in second]
    before, after = (_scores(task, (pair[side] for pair in rows), arm) for side in (0, 1))
    every = [_scores(task, (pair[side] for pair in rows), name) for side in (0, 1) for name in task.arms]
    fraction = task.is_fraction and are_fractions(np.concatenate(every))
    labels = None if task.grouped_by is None else [row.get(task.grouped_by) for row, _ in rows]
    if labels is None or None in labels:
        found = paired_difference(after, before, Design(None, fraction))
        return found if labels is None else found.model_copy(update={"stderr": None, "stderr_method": None})
    return paired_difference(after, before, Design(groups(map(str, labels)), fraction))


def _scores(task: TaskRecord, rows: Iterator[Mapping[str, Any]], arm: str) -> Values:
    return as_values(row["arms"].get(arm, {}).get(task.metric) for row in rows)


def _text(task: TaskRecord, found: Estimate) -> str:
    """Difference [95 % interval]."""
    if found.value is None:
        return "–"
    scale, digits = scale_and_digits(task)
    value = f"{found.value * scale:+.{digits}f}"
    if found.stderr is None:
        return value
    low, high = ((found.value + sign * NORMAL_95 * found.stderr) * scale for sign in (-1, 1))
    return f"{value} [{low:+.{digits}f}, {high:+.{digits}f}]"


def _value(task: TaskRecord, arm: str) -> str:
    value, (scale, digits) = task.arms[arm].value, scale_and_digits(task)
    return "–" if value is None else f"{value * scale:.{digits}f}"


def items_of(folder: Path, task: str) -> Items:
    """The items of a task; raises UserError if they cannot be read."""
    path = (folder if folder.is_dir() else folder.parent) / "items" / f"{task}.jsonl"
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}, which has the scores of single items: {error}") from error
    return {f"{row['doc_id']} {row['prompt']}": row for row in rows}
