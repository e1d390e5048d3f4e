"""Figures in percent, as tidy frames: what a paper printed, and what runs of ours measured."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from proxytune.errors import UserError
from proxytune.record import ArmRecord, Record, TaskRecord, read_record
from proxytune.reporting.papers.layouts import Layout, Paper
from proxytune.reporting.papers.settings import differences, shipped

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


class TableRun(NamedTuple):
    """A run that fills cells of a table."""

    panel: str
    """The experiment or the family, whose panel the layout knows."""
    record: Record
    experiment: str | None = None
    """The paper's, which the run's settings are compared with."""

    def differs(self, name: str, arm: ArmRecord) -> str:
        """What of the arm's settings is not the experiment's; "" where nothing is."""
        if self.experiment is None:
            return ""
        return "; ".join(differences(self.record.provenance.config or {}, shipped(self.experiment), name, arm.roles))


def run_of_experiment(path: Path | str) -> TableRun:
    """The run at `path`; raises UserError for one that names no experiment."""
    record = read_record(path)
    name = (record.provenance.config or {}).get("experiment")
    if not name:
        raise UserError(f"runs: {path} names no experiment; a paper's table needs runs of `experiment=<name>`")
    return TableRun(str(name), record, str(name))


def measured(layout: Layout, runs: Iterable[TableRun]) -> pd.DataFrame:
    """Our figures for one table: panel, arm, task, direction, ours and stderr (percent where fractions), n, left_out
    (items) and differs."""
    rows = [
        [layout.panel(run.panel, name), name, column, *_figures(task, arm), run.differs(name, arm)]
        for run in runs
        if run.panel in layout.experiments
        for column, task in ((column, run.record.tasks.get(task)) for column, task in layout.runs.items())
        if task is not None
        for name, arm in task.arms.items()
    ]
    return pd.DataFrame(rows, columns=[*KEYS, "direction", "ours", "stderr", "n", "left_out", "differs"])


def _figures(task: TaskRecord, arm: ArmRecord) -> tuple[str, float, float, int, int]:
    scale = 100 if task.is_fraction else 1
    value, stderr = (math.nan if number is None else scale * number for number in (arm.value, arm.stderr))
    return "higher" if task.higher_is_better else "lower", value, stderr, task.n, arm.left_out
