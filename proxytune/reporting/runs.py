"""Runs on disk: which there are, and what came out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from proxytune.errors import UserError
from proxytune.reporting.tables import UNSCALED, Record
from proxytune.reporting.terminal import show


def read_record(folder: str | Path) -> Record:
    """The record of a run folder, or of its `results.json`; raises UserError if there is none."""
    path = Path(folder)
    path = path / "results.json" if path.is_dir() else path
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{folder}: there is no results.json: give a finished run's folder") from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("tasks"), dict):
        raise UserError(f"{path} holds no results of proxytune run")
    return record


def show_run(folder: str | Path, console: Console | None = None) -> None:
    """Prints the tables of a finished run again."""
    show(read_record(folder), console)


def list_runs(folder: str | Path, console: Console | None = None) -> None:
    """Prints one row per task of every finished run under `folder`, the oldest run first; raises UserError if none."""
    console = console or Console()
    paths = sorted(Path(folder).rglob("results.json"), key=lambda path: path.stat().st_mtime)
    if not paths:
        raise UserError(f"{folder}: no finished run (no results.json) in or under this folder")
    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("run", "finished", "task", "n", "arms", "headline values"):
        table.add_column(heading, overflow="fold")
    faults = []
    for path in paths:
        try:
            record = read_record(path)
        except UserError as error:
            faults.append(str(error))
            continue
        finished = f"{datetime.fromtimestamp(path.stat().st_mtime):%Y-%m-%d %H:%M}"
        for run, when, cells in _first_only(str(path.parent), finished, _rows(record)):
            table.add_row(*map(Text, (run, when, *cells)))
    console.print(table)
    for fault in faults:
        console.print(Text(fault, style="dim"))


def _first_only(run: str, when: str, rows: Iterator[list[str]]) -> Iterator[tuple[str, str, list[str]]]:
    """The run's name and time in its first row only."""
    for cells in rows:
        yield run, when, cells
        run = when = ""


def _rows(record: Record) -> Iterator[list[str]]:
    for name, task in record["tasks"].items():
        values = ", ".join(f"{label} {_value(task, arm)}" for label, arm in _headline(task))
        yield [name, str(task["n"]), str(len(task["arms"])), f"{task['metric']}: {values}"]
    for name, arms in record.get("failed", {}).items():
        yield [name, "", "", f"failed: {', '.join(arms)}"]


def _headline(task: Record) -> Iterator[tuple[str, Record]]:
    """Base and tuned where they are arms, and the best arm with a rule."""
    for reference in ("base", "tuned"):
        if reference in task["references"]:
            yield reference, task["arms"][task["references"][reference]]
    fused = [(name, arm) for name, arm in task["arms"].items() if arm["rule"] and arm["value"] is not None]
    if fused:
        best = (max if task["higher_is_better"] else min)(fused, key=lambda pair: pair[1]["value"])
        yield f"best fused {best[0]}", best[1]


def _value(task: Record, arm: Record) -> str:
    if arm["value"] is None:
        return "–"
    return f"{arm['value']:.1f}" if task["metric"] in UNSCALED else f"{arm['value'] * 100:.1f} %"
