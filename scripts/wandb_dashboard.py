"""Builds a W&B report that compares runs: alpha sweep, gap closed, results of all arms, parallel coordinates.

    pip install wandb-workspaces
    python scripts/wandb_dashboard.py --entity ENTITY [--project proxytune] [--group GROUP] RUN...

The run folders say which tasks, arms and swept keys there are; the report shows every run of the project or group that
was logged with `proxytune run logger=wandb` or `proxytune sync`. The W&B server must be reachable.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import wandb_workspaces.reports.v2 as wr

from proxytune.record import Record, TaskRecord, read_record
from proxytune.reporting.configurations import deciding, flattened

WIDE = wr.Layout(w=24, h=12)


def dashboard(runs: Sequence[Record], entity: str, project: str, group: str | None = None) -> wr.Report:
    """The report, not yet saved."""
    # With several families or sweeps the first record of a task stands for the others.
    tasks = {name: task for record in reversed(runs) for name, task in record.tasks.items()}
    keys = swept([record.provenance.config or {} for record in runs])
    runset = wr.Runset(entity, project, filters="" if group is None else f"Group = '{group}'")
    sections = {
        "Alpha": list(_alpha(tasks, keys)),
        "Gap closed": [_gap_closed(name, task) for name, task in tasks.items()],
        "Arms": [wr.WeavePanelSummaryTable(table_name="results", layout=WIDE)],
        "Swept keys": [_coordinates(tasks, keys)] if keys else [],
        "Configurations": [wr.RunComparer(diff_only=True, layout=WIDE)],
    }
    blocks = [
        block
        for title, panels in sections.items()
        if panels
        for block in (wr.H2(title), wr.PanelGrid(runsets=[runset], panels=panels))
    ]
    return wr.Report(project, entity, f"proxytune: {', '.join(tasks)}"[:128], blocks=blocks, width="fluid")


def swept(configs: Sequence[dict[str, Any]]) -> list[str]:
    """The keys of numbers, texts and switches that decide results and in which the configurations differ."""
    flat = [dict(flattened(deciding(config))) for config in configs]
    keys = dict.fromkeys(key for one in flat for key, value in one.items() if not isinstance(value, list))
    return [key for key in keys if len({str(one.get(key)) for one in flat}) > 1]


def _alpha(tasks: dict[str, TaskRecord], keys: Sequence[str]) -> Iterator[wr.ScatterPlot]:
    """For each swept weight of an arm, its metric on each task."""
    for key in keys:
        if not (key.startswith("arms.") and key.endswith(".rule.weights")):
            continue
        arm = key.split(".")[1]
        for name, task in tasks.items():
            if arm in task.arms:
                y = wr.SummaryMetric(f"{name}/{arm}/{task.metric}")
                yield wr.ScatterPlot(title=f"{arm} on {name}", x=wr.Config(key), y=y)


def _gap_closed(name: str, task: TaskRecord) -> wr.BarPlot:
    metrics = [wr.SummaryMetric(f"{name}/{arm}/gap_closed") for arm, one in task.arms.items() if one.rule]
    return wr.BarPlot(title=f"Gap closed on {name}", metrics=metrics)


def _coordinates(tasks: dict[str, TaskRecord], keys: Sequence[str]) -> wr.ParallelCoordinatesPlot:
    """The swept keys, and then the gap that each fused arm closes."""
    closed = [f"{name}/{arm}/gap_closed" for name, task in tasks.items() for arm, one in task.arms.items() if one.rule]
    columns = [wr.ParallelCoordinatesPlotColumn(wr.Config(key)) for key in keys]
    columns += [wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(name)) for name in closed]
    return wr.ParallelCoordinatesPlot(columns=columns, layout=WIDE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--entity", required=True)
    parser.add_argument("--project", default="proxytune")
    parser.add_argument("--group")
    given = parser.parse_args()
    report = dashboard([read_record(run) for run in given.runs], given.entity, given.project, given.group)
    print(report.save().url)
