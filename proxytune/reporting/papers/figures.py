"""Figures in percent, as tidy frames: what a paper printed, and what runs of ours measured."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NotRequired

import pandas as pd
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from proxytune.errors import UserError
from proxytune.reporting.papers.layouts import Layout, Paper

KEYS = ["panel", "arm", "task"]


class _Answer(TypedDict):
    value: float | None
    stderr: float | None


class _Task(TypedDict):
    n: int
    arms: dict[str, _Answer]


class _Provenance(TypedDict):
    config: NotRequired[dict[str, Any] | None]


class _Record(TypedDict):
    """What is read of a results.json."""

    tasks: dict[str, _Task]
    provenance: NotRequired[_Provenance]


_RECORD = TypeAdapter(_Record)


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


def read_run(path: Path | str) -> dict[str, Any]:
    """The record in a results.json, or in the run folder that holds one."""
    path = Path(path)
    path = path / "results.json" if path.is_dir() else path
    if not path.exists():
        raise UserError(f"runs: {path} does not exist; give run folders or their results.json files.")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"runs: {path} is not a results.json ({error}).") from error
    if not isinstance(record, dict) or not isinstance(record.get("tasks"), dict):
        raise UserError(f"runs: {path} is not a results.json: it has no 'tasks'.")
    try:
        _RECORD.validate_python(record)
    except ValidationError as error:
        fault = error.errors()[0]
        raise UserError(
            f"runs: {path} is not a results.json: {'.'.join(map(str, fault['loc']))}: {fault['msg']}."
        ) from error
    return record


def experiment_of(record: dict[str, Any], path: Path | str) -> str:
    """The experiment that a run came from."""
    name = (record.get("provenance", {}).get("config") or {}).get("experiment")
    if not name:
        raise UserError(f"runs: {path} names no experiment; a paper's table needs runs of `experiment=<name>`.")
    return str(name)


def measured(layout: Layout, runs: Iterable[tuple[str, dict[str, Any]]]) -> pd.DataFrame:
    """Our figures for one table from (experiment, record) pairs: panel, arm, task, ours, stderr (percent), n."""
    columns = {task: column for column, task in layout.runs.items()}
    rows = [
        [layout.panel(experiment, arm), arm, columns[task], _percent(answer["value"]), _percent(answer["stderr"]), n]
        for experiment, record in runs
        if experiment in layout.experiments
        for task, arms, n in ((task, entry["arms"], entry["n"]) for task, entry in record["tasks"].items())
        if task in columns
        for arm, answer in arms.items()
    ]
    return pd.DataFrame(rows, columns=[*KEYS, "ours", "stderr", "n"])


def _percent(value: float | None) -> float:
    return math.nan if value is None else 100 * value
