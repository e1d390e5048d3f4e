"""Logs of Inspect (https://inspect.aisi.org.uk): one JSON file for each arm on each task, for `inspect view`.

An arm is a model called `proxytune/<arm>`. The log's format is Inspect's own, version 2; nothing of Inspect is needed
to write it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from proxytune.atomic import write_json
from proxytune.reporting.export.source import Cell, Item, cells, file_name, finished
from proxytune.reporting.report.source import Run

VERSION = 2


def write(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Files named as Inspect names them: when, task and arm, a number."""
    logs = {folder / _name(cell): cell for run in runs for cell in cells(run)}
    for path, cell in logs.items():
        write_json(path, _log(cell))
    return list(logs)


def _name(cell: Cell) -> str:
    task = file_name(cell.task_name, cell.arm_name).replace("_", "-")
    return f"{finished(cell.run):%Y-%m-%dT%H-%M-%S+00-00}_{task}_{_id(cell)}.json"


def _id(cell: Cell) -> str:
    return cell.digest.hex()[:22]


def _log(cell: Cell) -> dict[str, Any]:
    when = finished(cell.run).isoformat()
    return {
        "version": VERSION,
        "status": "success",
        "eval": _spec(cell, when),
        "plan": {"name": "plan", "steps": []},
        "results": _results(cell),
        "stats": {"started_at": when, "completed_at": when},
        "samples": [_sample(item, cell) for item in cell.items],
    }


def _spec(cell: Cell, when: str) -> dict[str, Any]:
    provenance, data = cell.run.record.provenance, cell.task.data
    rule = None if cell.arm.rule is None else cell.arm.rule.model_dump()
    members = {role: provenance.members[role].model_dump() for role in cell.arm.roles if role in provenance.members}
    return {
        "eval_id": _id(cell),
        "run_id": _id(cell),
        "created": when,
        "task": cell.task_name,
        "task_id": _id(cell),
        "task_args": dict(given.partition("=")[::2] for given in cell.run.overrides),  # what tells runs apart in a list
        "tags": [str(tag) for tag in cell.run.config.get("tags") or ()],
        "dataset": {
            "name": data.dataset or cell.task_name,
            "location": data.dataset or data.file,
            "samples": cell.task.n,
            "sample_ids": [item.id for item in cell.items],
            "shuffled": False,
        },
        "model": f"proxytune/{cell.arm_name}",
        "model_args": {"rule": rule, "members": members},
        "config": {"limit": provenance.limit},
        "packages": {"proxytune": str(provenance.code.get("version"))},
        "metadata": {"run": cell.run.folder.name, "provenance": provenance.model_dump(exclude={"members", "timings"})},
    }


def _results(cell: Cell) -> dict[str, Any]:
    values = {"mean": cell.arm.value, "stderr": cell.arm.stderr, "gap_closed": cell.arm.gap_closed}
    metrics = {name: {"name": name, "value": value} for name, value in values.items() if value is not None}
    metric = cell.task.metric
    score = {"name": metric, "scorer": metric, "scored_samples": cell.arm.n, "unscored_samples": cell.arm.n_invalid}
    return {
        "total_samples": cell.task.n,
        "completed_samples": cell.task.n - len(cell.arm.failed_items),
        "scores": [{**score, "metrics": metrics}],
        "metadata": {"undefined": cell.arm.undefined},
    }


def _sample(item: Item, cell: Cell) -> dict[str, Any]:
    said = [{"message": {"role": "assistant", "content": text}, "stop_reason": "stop"} for text in item.outputs]
    score = {"value": item.score, "answer": item.answer}
    first = item.outputs[0] if item.outputs else ""
    sample = {
        "id": item.id,
        "epoch": 1,
        "input": item.prompt,
        "choices": item.choices,
        "target": item.targets if len(item.targets) != 1 else item.targets[0],
        "messages": [{"role": "user", "content": item.prompt}, {"role": "assistant", "content": first}],
        "output": {"model": f"proxytune/{cell.arm_name}", "choices": said, "completion": first},
        "scores": {} if item.score is None else {cell.task.metric: score},
        "metadata": {"log_probabilities": item.log_probabilities, "alpha": item.alpha},
    }
    if item.error is not None:
        sample["error"] = {"message": item.error, "traceback": "", "traceback_ansi": ""}
    return sample
