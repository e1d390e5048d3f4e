"""A record as one tidy table: a row for each task, arm and metric."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from proxytune.reporting.tables import Record

COLUMNS = (
    *("task", "arm", "rule", "metric", "headline", "value", "stderr", "n", "n_invalid"),
    *("gap_closed", "gap_closed_low", "gap_closed_high", "relative_performance", "undefined"),
)


def tidy(record: Record) -> pd.DataFrame:
    """Columns `COLUMNS`; the gap is that of the headline metric, and `undefined` says why there is none."""
    rows = [
        row
        for task_name, task in record["tasks"].items()
        for arm_name, arm in task["arms"].items()
        for row in _rows({"task": task_name, "arm": arm_name}, task, arm)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _rows(key: dict[str, str], task: Record, arm: Record) -> Iterator[dict[str, Any]]:
    low, high = arm["gap_closed_ci"] or (None, None)
    shared = {**key, "rule": (arm["rule"] or {}).get("id"), "n": arm["n"]}
    yield {
        **shared,
        "metric": task["metric"],
        "headline": True,
        "value": arm["value"],
        "stderr": arm["stderr"],
        "n_invalid": arm["n_invalid"],
        "gap_closed": arm["gap_closed"],
        "gap_closed_low": low,
        "gap_closed_high": high,
        "relative_performance": arm["relative_performance"],
        "undefined": "; ".join(f"{name}: {why}" for name, why in arm["undefined"].items()) or None,
    }
    for metric, value in arm["metrics"].items():
        if metric != task["metric"]:
            yield {**shared, "metric": metric, "headline": False, "value": value}
