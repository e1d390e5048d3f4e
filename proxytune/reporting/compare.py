"""Runs side by side: how their configurations differ, and paired differences of their arms over the same items."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from proxytune.errors import UserError
from proxytune.record import Record, TaskRecord, flattened, read_record
from proxytune.reporting.columns import NORMAL_95, scale_and_digits

APART = ("output", "store", "tags", "note", "headline")


class Difference(NamedTuple):
    """Of the same items' scores: second minus first."""

    value: float
    error: float | None
    """Standard error of the mean difference; None with fewer than two items."""
    n: int

    def scaled(self, scale: float, digits: int) -> str:
        """Difference [95 % interval]."""
        value = f"{self.value * scale:+.{digits}f}"
        if self.error is None:
            return value
        low, high = ((self.value + sign * NORMAL_95 * self.error) * scale for sign in (-1, 1))
        return f"{value} [{low:+.{digits}f}, {high:+.{digits}f}]"


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
    console.print(Text("Differences are paired over the items that both runs judged; 95 % intervals.", style="dim"))


def _show_configurations(runs: Sequence[tuple[Path, Record]], console: Console) -> None:
    flat = [dict(flattened(record.provenance.config or {})) for _, record in runs]
    keys = sorted({key for one in flat for key in one if key.split(".")[0] not in APART})
    differing = [key for key in keys if len({json.dumps(one.get(key), sort_keys=True) for one in flat}) > 1]
    table = RichTable(title="What differs", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("key", overflow="fold")
    for path, _ in runs:
        table.add_column(Text(str(path)), overflow="fold")
    for key in differing:
        table.add_row(Text(key), *(Text("–" if key not in one else json.dumps(one[key])) for one in flat))
    sources = {record.provenance.code.get("source") for _, record in runs}
    if differing:
        console.print(table)
    else:
        console.print(Text("The configurations are the same."))
    if len(sources) > 1:
        console.print(Text("The runs were made by different versions of the code."))


def _tables(first: tuple[Path, Record], other: tuple[Path, Record]) -> Iterator[RichTable]:
    """One for each task that both runs have."""
    for name, task in first[1].tasks.items():
        there = other[1].tasks.get(name)
        arms = [arm for arm in task.arms if there and arm in there.arms and task.metric == there.metric]
        if there is None or not arms:
            continue
        rows = [_items(folder, name) for folder in (first[0], other[0])]
        table = RichTable(
            title=f"{name} ({task.metric}): {other[0]} − {first[0]}", title_justify="left", box=box.SIMPLE_HEAD
        )
        for heading in ("arm", "first", "second", "difference", "n"):
            table.add_column(heading, justify="left" if heading == "arm" else "right")
        for arm in arms:
            found = difference(*(_scores(items, arm, task.metric) for items in rows))
            text = "–" if found is None else found.scaled(*scale_and_digits(task))
            table.add_row(Text(arm), _value(task, arm), _value(there, arm), text, str(found.n if found else 0))
        yield table


def _value(task: TaskRecord, arm: str) -> str:
    value, (scale, digits) = task.arms[arm].value, scale_and_digits(task)
    return "–" if value is None else f"{value * scale:.{digits}f}"


def _items(folder: Path, task: str) -> list[dict[str, Any]]:
    path = (folder if folder.is_dir() else folder.parent) / "items" / f"{task}.jsonl"
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}, which has the scores of single items: {error}") from error


def _scores(items: Sequence[Mapping[str, Any]], arm: str, metric: str) -> dict[str, float]:
    """By item and prompt: an item of the same number but with another prompt is another item."""
    scores = {}
    for item in items:
        value = item["arms"].get(arm, {}).get(metric)
        if value is not None and math.isfinite(value):
            scores[f"{item['doc_id']} {item['prompt']}"] = float(value)
    return scores


def difference(first: Mapping[str, float], second: Mapping[str, float]) -> Difference | None:
    """The mean over the items that both have; None if there are none."""
    pairs = [second[item] - first[item] for item in first if item in second]
    if not pairs:
        return None
    error = stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) > 1 else None
    return Difference(fmean(pairs), error, len(pairs))
