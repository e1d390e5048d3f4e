"""What is logged of a run, under stable names and independent of any dashboard library."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from proxytune.progress import Progress
from proxytune.record import FILE, ArmRecord, Record, TaskRecord
from proxytune.reporting.charts import charts, drawn
from proxytune.reporting.frames import Frames

FILES = (FILE, "results.csv", "table.md", "report.html")


def progress_values(progress: Progress) -> dict[str, float]:
    """progress/answers, and for each task that has begun its pace and each arm's items and running metric."""
    values: dict[str, float] = {"progress/answers": progress.answers}
    for name, task in progress.tasks.items():
        if task.began is None:
            continue
        if task.tokens_per_second is not None:
            values[f"progress/{name}/tokens_per_second"] = task.tokens_per_second
        for arm_name, arm in task.arms.items():
            values[f"progress/{name}/{arm_name}/items"] = arm.items
            if arm.value is not None:
                values[f"progress/{name}/{arm_name}/{task.metric}"] = arm.value
    return values


def summary_values(record: Record) -> dict[str, float]:
    """<task>/<arm>/<metric>, .../stderr, .../gap_closed and so on; what is undefined is left out."""
    return {
        f"{task_name}/{arm_name}/{name}": value
        for task_name, task in record.tasks.items()
        for arm_name, arm in task.arms.items()
        for name, value in _arm_values(task, arm)
        if value is not None
    }


def costs(frames: Frames) -> dict[str, float]:
    """cost/<task>/<what> and cost/<task>/<arm>/<what>, as far as they are known.

    Of a task: seconds, load_seconds, computed, from_store, tokens and memory; of an arm seconds, tokens, speed (tokens
    per second) and weights (bytes).
    """
    tasks = frames.costs.melt("task").dropna(subset=["value"])
    arms = frames.arm_costs.melt(["task", "arm"]).dropna(subset=["value"])
    named = {f"cost/{task}/{what}": float(value) for task, what, value in tasks.itertuples(index=False)}
    return named | {
        f"cost/{task}/{arm}/{what}": float(value) for task, arm, what, value in arms.itertuples(index=False)
    }


def _arm_values(task: TaskRecord, arm: ArmRecord) -> Iterator[tuple[str, float | None]]:
    yield from arm.metrics.items()
    yield task.metric, arm.value
    yield "stderr", arm.stderr
    yield "n", arm.n
    yield "gap_closed", arm.gap_closed
    low, high = arm.gap_closed_ci or (None, None)
    yield "gap_closed_low", low
    yield "gap_closed_high", high
    yield "relative_performance", arm.relative_performance
    for expert, weights in arm.weights.items():
        yield f"alpha/{expert}/mean", weights.mean
        yield f"alpha/{expert}/sd", weights.sd


def facts(record: Record) -> dict[str, object]:
    """Beside the configuration: the version of the code, of libraries and of models, and the machine."""
    provenance = record.provenance
    members = {role: member.model_dump() for role, member in provenance.members.items()}
    named = {"code": provenance.code, "libraries": provenance.libraries, "machine": provenance.machine}
    return {"provenance": {**named, "members": members}}


def samples(task: TaskRecord, rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A row for each item: prompt, target, and each arm's output and score side by side."""
    return pd.DataFrame(
        {
            "doc_id": [row["doc_id"] for row in rows],
            "prompt": [row["prompt"] for row in rows],
            "target": [_text(row["target"]) for row in rows],
            **{arm: [_text(row["arms"][arm]["output"]) for row in rows] for arm in task.arms},
            **{f"{arm}/{task.metric}": [row["arms"][arm][task.metric] for row in rows] for arm in task.arms},
        }
    )


def weights(frames: Frames) -> dict[str, pd.Series]:
    """<task>/<arm>/alpha/<expert> -> the weights at all tokens of all answers, of fused arms."""
    groups = frames.weights.dropna(subset=["alpha"]).groupby(["task", "arm", "expert"], sort=False)
    return {f"{task}/{arm}/alpha/{expert}": rows["alpha"] for (task, arm, expert), rows in groups}


def figures(frames: Frames) -> dict[str, str]:
    """figures/<name> -> the figure as SVG."""
    return {f"figures/{name}": drawn(chart).decode() for name, chart in charts([frames]).items()}


def files(folder: Path) -> Iterator[Path]:
    """The files of the run that are kept with it, as far as they are there."""
    yield from (folder / name for name in FILES if (folder / name).is_file())
    yield from sorted((*folder.glob("items/*.jsonl"), *folder.glob("traces/*.parquet")))


def _text(value: object) -> str | None:
    return value if isinstance(value, str) or value is None else json.dumps(value, ensure_ascii=False)
