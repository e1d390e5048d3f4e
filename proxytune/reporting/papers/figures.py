"""Figures in percent, as tidy frames: what a paper printed, and what runs of ours measured."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from proxytune.errors import UserError
from proxytune.record import Record
from proxytune.reporting.papers.layouts import Layout, Paper

KEYS = ["panel", "arm", "task"]


def reference_folder() -> Path:
    """Where the reference tables are: beside this file in an installed package, in results/ in a checkout."""
    shipped = Path(__file__).parent / "reference"
    return shipped if shipped.is_dir() else Path(__file__).parents[3] / "results" / "reference"


def reference(paper: Paper, layout: Layout) -> pd.DataFrame:
    """The printed figures of one table: panel, arm, task, metric, better, reference (percent), source, note."""
    columns = [*KEYS, "metric", "better", "reference", "source", "note"]
    path = reference_folder() / f"{paper.id}_{layout.id}.csv"
    if not path.exists():
        return pd.DataFrame(columns=columns)
    frame = pd.read_csv(path, keep_default_na=False)
    frame["reference"] = frame["value"].where(frame["unit"] == "percent", 100 * frame["value"])
    return frame[columns]


def experiment_of(record: Record, path: Path | str) -> str:
    """The experiment that a run came from."""
    name = (record.provenance.config or {}).get("experiment")
    if not name:
        raise UserError(f"runs: {path} names no experiment; a paper's table needs runs of `experiment=<name>`")
    return str(name)


def measured(layout: Layout, runs: Iterable[tuple[str, Record]]) -> pd.DataFrame:
    """Our figures for one table from (experiment, record) pairs: panel, arm, task, ours, stderr (percent), n."""
    rows = [
        [layout.panel(experiment, name), name, column, _percent(arm.value), _percent(arm.stderr), task.n]
        for experiment, record in runs
        if experiment in layout.experiments
        for column, task in ((column, record.tasks.get(task)) for column, task in layout.runs.items())
        if task is not None
        for name, arm in task.arms.items()
    ]
    return pd.DataFrame(rows, columns=[*KEYS, "ours", "stderr", "n"])


def _percent(value: float | None) -> float:
    return math.nan if value is None else 100 * value
