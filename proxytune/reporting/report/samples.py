"""What the sample browser shows: per task, the items of all runs, as compact columns of text that a script reads."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from proxytune.record import TaskRecord
from proxytune.reporting.report.source import Run

Row = Mapping[str, Any]
NOT_METRIC = {"output", "answer", "weights", "error"}
"""What an arm has in a row of `items/<task>.jsonl` besides its metric's value."""


@dataclass(frozen=True)
class Samples:
    """One task's items over all runs."""

    task: str
    metric: str
    judged: bool
    """Whether 1 is right and 0 is wrong."""
    arms: list[tuple[int, str]]
    """Number of the run, and arm: the columns of an item."""
    items: list[dict[str, Any]]
    places: dict[tuple[int, str], int]
    """Number of the run, and its id of an item -> the item's place in `items`."""

    def head(self) -> dict[str, object]:
        """What the list of items needs in addition."""
        return {
            "task": self.task,
            "metric": self.metric,
            "judged": self.judged,
            "arms": self.arms,
            "lead": _lead([item["prompt"] for item in self.items]),
        }


def samples(runs: Sequence[Run]) -> list[Samples]:
    """Of every task that has items in some run."""
    return [_samples(task, runs) for task in dict.fromkeys(task for run in runs for task in run.items)]


def _samples(task: str, runs: Sequence[Run]) -> Samples:
    arms = [
        (number, arm)
        for number, run in enumerate(runs)
        for arm in dict.fromkeys(arm for row in run.items.get(task, ()) for arm in row["arms"])
    ]
    record = next((run.record.tasks[task] for run in runs if task in run.record.tasks), None)
    columns = {key: column for column, key in enumerate(arms)}
    items: dict[str, dict[str, Any]] = {}
    places: dict[tuple[int, str], int] = {}
    order: dict[str, int] = {}
    for number, run in enumerate(runs):
        for row in run.items.get(task, ()):
            item = _same(items, row, len(arms))
            places[number, str(row["doc_id"])] = order.setdefault(item["id"], len(order))
            for arm, said in row["arms"].items():
                item["cells"][columns[number, arm]] = _cell(said, row)
    judged = record is None or record.is_fraction
    return Samples(task, _metric(task, record, runs), judged, arms, list(items.values()), places)


def _same(items: dict[str, dict[str, Any]], row: Row, columns: int) -> dict[str, Any]:
    """The item of `items` that is `row`'s, which is added if need be: of runs over other data, not all that share an
    id are the same. Another prompt makes another item."""
    name, count = str(row["doc_id"]), 1
    content = {key: row.get(key) for key in ("prompt", "choices", "target")}
    while name in items:
        if all(items[name].get(key) == value for key, value in content.items()):
            return items[name]
        count += 1
        name = f"{row['doc_id']}~{count}"
    cut = {"cut": row["truncated_tokens"]} if row.get("truncated_tokens") else {}
    items[name] = {"id": name, **content, **cut, "cells": [None] * columns}
    return items[name]


def _cell(said: Row, row: Row) -> dict[str, object]:
    """What an arm did at an item: `answer` only where it is not the output itself, `alpha` per expert."""
    value = next((said[key] for key in said if key not in NOT_METRIC), None)
    cell = {"output": said.get("output"), "value": _short(value)}
    if row.get("choices") is None and said.get("answer") != said.get("output"):
        cell["answer"] = said.get("answer")
    if said.get("error") is not None:
        cell["error"] = said["error"]
    if said.get("weights"):
        cell["alpha"] = {expert: _range(weights) for expert, weights in said["weights"].items()}
    return cell


def _range(weights: Sequence[Sequence[float | None]]) -> list[float | None] | None:
    """Mean, least and greatest of an expert's weights at an item; None without any finite one."""
    known = [weight for answer in weights for weight in answer if weight is not None]
    return [_short(sum(known) / len(known)), _short(min(known)), _short(max(known))] if known else None


def _short(value: float | None) -> float | None:
    """Whole numbers without a fraction, others in six digits: what a reader can see, in few characters."""
    if value is None:
        return None
    return int(value) if value == int(value) else float(f"{value:.6g}")


def _metric(task: str, record: TaskRecord | None, runs: Sequence[Run]) -> str:
    if record is not None:
        return record.metric
    names = (key for run in runs for row in run.items.get(task, ()) for said in row["arms"].values() for key in said)
    return next((name for name in names if name not in NOT_METRIC), "value")


def _lead(prompts: Sequence[str]) -> int:
    """How many UTF-16 units at the beginning of all prompts are the same, up to the last space."""
    shared = os.path.commonprefix(prompts)  # noqa: RUF071
    if shared in prompts:  # nothing of this prompt would be left
        return 0
    return len(shared[: shared.rfind(" ") + 1].encode("utf-16-le", "surrogatepass")) // 2
