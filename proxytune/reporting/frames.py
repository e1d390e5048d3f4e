"""A run's folder as tidy pandas frames: what figures, reports and notebooks are made of.

from proxytune.reporting.frames import frames
frames("outputs/RUN").results
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from proxytune.errors import UserError
from proxytune.record import FILE, Answers, ArmRecord, Record, TaskRecord, read_items, read_record
from proxytune.reporting.columns import NORMAL_95
from proxytune.reporting.files import tidy

TRACES = "traces"
TRACE_COLUMNS = ("task", "arm", "item", "step", "token", "text", "p_fused", "p_base", "differs")


@dataclass(frozen=True)
class Frames:
    """The tidy frames of one run; columns of all frames that have them: task, arm."""

    run: str
    """The name of the run's folder."""
    results: pd.DataFrame
    """A row per task, arm and metric: the columns of `results.csv` (`gap_low` and `gap_high` for the interval), with
    kind ("base", "antiexpert", "expert", "tuned" or "fused"), low and high (95 % interval of value), alpha (the weight
    of a static rule, NaN for others), balance (the share of the first of a static rule's two weights, NaN for others),
    fraction, higher_is_better, members (what they are made of) and experts."""
    items: pd.DataFrame
    """A row per task, arm and item: score (NaN where undefined) and error (None where the arm did not fail)."""
    weights: pd.DataFrame
    """A row per weight that a fused arm gave an expert: task, arm, item, generated, step (from 0), expert, alpha."""
    traces: pd.DataFrame
    """A row per generated token (`proxytune.reporting.frames`), without the top-5; empty for a run without traces."""
    costs: pd.DataFrame
    """A row per task, of all arms together: seconds, load_seconds, computed and from_store (answers), tokens (of the
    answers, None in older records) and memory (bytes at the peak)."""
    arm_costs: pd.DataFrame
    """A row per task and arm whose answers were computed and timed: seconds, tokens, speed (tokens per second,
    NaN where none) and weights (bytes), as in `proxytune.record.ArmCost`."""


def frames(run_folder: str | Path) -> Frames:
    """The frames of the run in `run_folder`; raises UserError if it is not one, or if a file of it cannot be read."""
    folder = Path(run_folder)
    folder = folder.parent if folder.name == FILE else folder
    record = read_record(folder)
    rows = {task: read_items(folder, task) or [] for task in record.tasks}
    return Frames(
        run=folder.resolve().name,
        results=_results(record),
        items=_items(record, rows),
        weights=_weights(rows),
        traces=_traces(folder, record),
        costs=_costs(record),
        arm_costs=_arm_costs(record),
    )


def _results(record: Record) -> pd.DataFrame:
    """`results.csv`, and what else a figure needs to know of each arm."""
    rows = [
        {"task": name, "arm": arm_name, **_facts(record, task, arm)}
        for name, task in record.tasks.items()
        for arm_name, arm in task.arms.items()
    ]
    facts = pd.DataFrame(rows, columns=["task", "arm", *_FACTS])
    results = tidy(record).rename(columns={"gap_closed_low": "gap_low", "gap_closed_high": "gap_high"})
    numbers = ["value", "stderr", "value_low", "value_high", "gap_closed", "gap_low", "gap_high"]
    results[numbers] = results[numbers].astype(float)
    half = NORMAL_95 * results["stderr"]
    results["low"] = results.pop("value_low").fillna(results["value"] - half)
    results["high"] = results.pop("value_high").fillna(results["value"] + half)
    return results.merge(facts, on=["task", "arm"], how="left")


_FACTS = ("kind", "alpha", "balance", "experts", "members", "fraction", "higher_is_better")


def _facts(record: Record, task: TaskRecord, arm: ArmRecord) -> dict[str, object]:
    members = record.provenance.members
    return {
        "kind": arm.kind,
        "alpha": _alpha(arm),
        "balance": _balance(arm),
        "experts": ", ".join(arm.weights),
        "members": " ".join(str(members[role].identity if role in members else role) for role in arm.roles),
        "fraction": task.is_fraction,
        "higher_is_better": task.higher_is_better,
    }


def _alpha(arm: ArmRecord) -> float:
    """The weight that a static rule gives every expert, NaN where there is no such number."""
    weights = arm.rule.parameters.get("weights") if arm.rule else None
    several = weights if isinstance(weights, list) else [weights]
    numbers = {float(weight) for weight in several if isinstance(weight, int | float)}
    return numbers.pop() if len(numbers) == 1 else np.nan


def _balance(arm: ArmRecord) -> float:
    """λ of a static rule with the weights λ and 1 − λ, or multiples of these, for two experts; NaN for others."""
    weights = arm.rule.parameters.get("weights") if arm.rule and arm.rule.id == "static" else None
    if not isinstance(weights, list) or len(weights) != 2 or min(weights) < 0 or sum(weights) == 0:
        return np.nan
    return weights[0] / sum(weights)


def _items(record: Record, rows: Mapping[str, list[dict[str, Any]]]) -> pd.DataFrame:
    table = [
        (task, arm, row["doc_id"], answer.get(record.tasks[task].metric), _text(answer.get("error")))
        for task, items in rows.items()
        for row in items
        for arm, answer in row["arms"].items()
    ]
    frame = pd.DataFrame(table, columns=["task", "arm", "item", "score", "error"])
    return frame.astype({"score": float})


def _text(error: str | None) -> str | None:
    """Half a character, which no frame can hold, is written out."""
    return error and error.encode("utf-8", "backslashreplace").decode("utf-8")


def _weights(rows: Mapping[str, list[dict[str, Any]]]) -> pd.DataFrame:
    table = [
        (task, arm, row["doc_id"], row["choices"] is None, step, expert, alpha)
        for task, items in rows.items()
        for row in items
        for arm, answer in row["arms"].items()
        for expert, requests in (answer["weights"] or {}).items()
        for weights in requests
        for step, alpha in enumerate(weights)
    ]
    columns = ["task", "arm", "item", "generated", "step", "expert", "alpha"]
    return pd.DataFrame(table, columns=columns).astype({"alpha": float, "generated": bool})


def _traces(folder: Path, record: Record) -> pd.DataFrame:
    """In the order of the record's tasks."""
    parts = [part for task in record.tasks if not (part := read_traces(folder, task, top=False)).empty]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(TRACE_COLUMNS))


def _costs(record: Record) -> pd.DataFrame:
    timings = record.provenance.timings
    rows = [
        {
            "task": name,
            "seconds": timings.task_seconds.get(name),
            "load_seconds": timings.load_seconds.get(name, 0.0),
            "computed": timings.answers.get(name, Answers()).computed,
            "from_store": timings.answers.get(name, Answers()).from_store,
            "tokens": sum(arm.tokens or 0 for arm in task.arms.values()) or None,
            "memory": timings.peak_memory.get(name),
        }
        for name, task in record.tasks.items()
    ]
    columns = ["task", "seconds", "load_seconds", "computed", "from_store", "tokens", "memory"]
    numbers = dict.fromkeys(["seconds", "tokens", "memory"], float)
    return pd.DataFrame(rows, columns=columns).astype(numbers)


def _arm_costs(record: Record) -> pd.DataFrame:
    rows = [
        (task, arm, cost.seconds, cost.tokens, cost.tokens_per_second, cost.weights)
        for task, found in record.provenance.timings.costs.items()
        for arm, cost in found.arms.items()
        if task in record.tasks and arm in record.tasks[task].arms
    ]
    columns = ["task", "arm", "seconds", "tokens", "speed", "weights"]
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(columns[2:], float))


def read_traces(run_folder: str | Path, task: str | None = None, *, top: bool = True) -> pd.DataFrame:
    """The traces of a run's tasks, or of one, a row per token; empty if there are none.

    Columns: `TRACE_COLUMNS` and alpha_<expert>. p_fused and p_base are the token's probabilities, differs is whether
    the base finds another token likelier; p_base and differs are missing for a model alone. With trace=full and `top`
    also top_fused, top_base and top_<role>: the five likeliest tokens, each with token, text and p.

    Raises UserError for a file that cannot be read.
    """
    paths = sorted((Path(run_folder) / TRACES).glob(f"{task or '*'}.parquet"))
    parts = [_read(path, top) for path in paths]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(TRACE_COLUMNS))


def _read(path: Path, top: bool) -> pd.DataFrame:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        names = parquet.read_schema(path).names
        frame = pd.read_parquet(path, columns=[name for name in names if top or not name.startswith("top_")])
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    # Names are stored as categories, which do not join with those of other files.
    return frame.astype(dict.fromkeys(("task", "arm"), str))
