"""A row for each item and arm, for pandas: `pandas.read_parquet("items.parquet")`, or the same as CSV."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from proxytune.atomic import atomic_write, write_text
from proxytune.reporting.configurations import by_key, swept_keys
from proxytune.reporting.export.source import results
from proxytune.reporting.report.source import Run

if TYPE_CHECKING:
    import pandas as pd


def write_csv(runs: Sequence[Run], path: Path) -> list[Path]:
    """Texts are as they were: a reader of CSV must allow line breaks in quotes."""
    write_text(path, frame(runs).to_csv(index=False))
    return [path]


def write_parquet(runs: Sequence[Run], path: Path) -> list[Path]:
    with atomic_write(path, binary=True) as file:
        frame(runs).to_parquet(file, index=False)
    return [path]


def frame(runs: Sequence[Run]) -> pd.DataFrame:
    """run, the keys whose values differ between the runs, task, arm, item, metric, score (NaN: not judged), error,
    alpha (mean weight over experts and tokens, NaN for a single model), prompt, target, output."""
    import pandas as pd

    given = [by_key([override for override in run.overrides if "=" in override]) for run in runs]
    keys = swept_keys(given)
    rows = [
        row for run, one in zip(runs, given, strict=True) for row in _rows(run, {key: one.get(key) for key in keys})
    ]
    return pd.DataFrame(rows)


def _rows(run: Run, swept: dict[str, object]) -> Iterator[dict[str, object]]:
    for result in results(run):
        for item in result.items:
            yield {
                "run": str(run.folder),
                **swept,
                "task": result.task_name,
                "arm": result.arm_name,
                "item": item.id,
                "metric": result.task.metric,
                "score": float("nan") if item.score is None else item.score,
                "error": item.error,
                "alpha": sum(item.alpha.values()) / len(item.alpha) if item.alpha else float("nan"),
                "prompt": item.prompt,
                "target": item.targets[0] if len(item.targets) == 1 else json.dumps(item.targets),
                "output": item.outputs[0] if len(item.outputs) == 1 else json.dumps(item.outputs),
            }
