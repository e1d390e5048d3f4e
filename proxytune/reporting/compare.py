"""Runs side by side: how their configurations differ, and paired differences of their arms over the same items."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from proxytune.errors import UserError
from proxytune.record import ITEMS, Estimate, Record, TaskRecord, read_items, read_record
from proxytune.reporting.columns import NORMAL_95, scale_and_digits, score_text
from proxytune.reporting.configurations import differing
from proxytune.reporting.terminal import plain_table, show_notes
from proxytune.statistics import Design, Values, are_fractions, as_values, groups, paired_difference

ItemRows = Mapping[str, Mapping[str, Any]]
"""Rows of an items' file by item and prompt: an item of the same number but with another prompt is another item."""


def compare_runs(folders: Sequence[str]) -> None:
    """Prints what differs in the configurations, and for each other run, task and arm the difference to the first run.

    Raises UserError for a run that cannot be read, and if no two runs share a task.
    """
    console = Console()
    first, *others = [(Path(folder), read_record(folder)) for folder in folders]
    _show_configurations([first, *others], console)
    tables = [table for other in others for table in _tables(first, other)]
    if not tables:
        raise UserError(f"{', '.join(folders)}: the runs have no task and arm in common")
    for table in tables:
        console.print(table)
    show_notes(console, "Differences are paired over the items that both runs have; 95 % intervals.")


def _show_configurations(runs: Sequence[tuple[Path, Record]], console: Console) -> None:
    rows = differing([record.provenance.config or {} for _, record in runs])
    table = plain_table("What differs")
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
        table = plain_table(f"{name} ({task.metric}): {other[0]} − {first[0]}")
        for heading in ("arm", "first", "second", "difference", "n"):
            table.add_column(heading, justify="left" if heading == "arm" else "right")
        for arm in arms:
            found = difference(task, before, after, arm)
            scores = (score_text(one, one.arms[arm].value) for one in (task, there))
            table.add_row(Text(arm), *scores, _text(task, found), str(found.n))
        yield table


def difference(task: TaskRecord, first: ItemRows, second: ItemRows, arm: str) -> Estimate:
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
    value = score_text(task, found.value, sign="+")
    if found.value is None or found.stderr is None:
        return value
    scale, digits = scale_and_digits(task)
    low, high = ((found.value + sign * NORMAL_95 * found.stderr) * scale for sign in (-1, 1))
    return f"{value} [{low:+.{digits}f}, {high:+.{digits}f}]"


def items_of(folder: Path, task: str) -> ItemRows:
    """The items of a task; raises UserError if they cannot be read."""
    rows = read_items(folder if folder.is_dir() else folder.parent, task)
    if rows is None:
        raise UserError(f"{folder} has no scores of single items: {ITEMS}/{task}.jsonl is missing")
    return {f"{row['doc_id']} {row['prompt']}": row for row in rows}
