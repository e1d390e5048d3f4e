"""Logs of Inspect (https://inspect.aisi.org.uk): one JSON file for each arm on each task, for `inspect view`.

An arm is a model called `proxytune/<arm>`. The log's format is Inspect's own, version 2; nothing of Inspect is needed
to write it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from proxytune.atomic import write_json
from proxytune.reporting.export.source import Item, Result, file_name, finished_at, results
from proxytune.reporting.report.source import Run

VERSION = 2


def write(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Files named as Inspect names them: when, task and arm, a number."""
    logs = {folder / _name(result): result for run in runs for result in results(run)}
    for path, result in logs.items():
        write_json(path, _log(result))
    return list(logs)


def _name(result: Result) -> str:
    task = file_name(result.task_name, result.arm_name).replace("_", "-")
    return f"{finished_at(result.run):%Y-%m-%dT%H-%M-%S+00-00}_{task}_{_id(result)}.json"


def _id(result: Result) -> str:
    return result.digest.hex()[:22]


def _log(result: Result) -> dict[str, object]:
    when = finished_at(result.run).isoformat()
    return {
        "version": VERSION,
        "status": "success",
        "eval": _spec(result, when),
        "plan": {"name": "plan", "steps": []},
        "results": _results(result),
        "stats": {"started_at": when, "completed_at": when},
        "samples": [_sample(item, result) for item in result.items],
    }


def _spec(result: Result, when: str) -> dict[str, object]:
    provenance, data = result.run.record.provenance, result.task.data
    rule = result.arm.rule and result.arm.rule.model_dump()
    origin = provenance.model_dump(exclude={"members", "timings"})
    members = {role: provenance.members[role].model_dump() for role in result.arm.roles if role in provenance.members}
    return {
        "eval_id": _id(result),
        "run_id": _id(result),
        "created": when,
        "task": result.task_name,
        "task_id": _id(result),
        # What tells runs apart in Inspect's list.
        "task_args": dict(given.partition("=")[::2] for given in result.run.overrides),
        "tags": [str(tag) for tag in result.run.config.get("tags") or ()],
        "dataset": {
            "name": data.dataset or result.task_name,
            "location": data.dataset or data.file,
            "samples": result.task.n,
            "sample_ids": [item.id for item in result.items],
            "shuffled": False,
        },
        "model": f"proxytune/{result.arm_name}",
        "model_args": {"rule": rule, "members": members},
        "config": {"limit": provenance.limit},
        "packages": {"proxytune": str(provenance.code.get("version"))},
        "metadata": {"run": result.run.folder.name, "provenance": origin},
    }


def _results(result: Result) -> dict[str, object]:
    values = {"mean": result.arm.value, "stderr": result.arm.stderr, "gap_closed": result.arm.gap_closed}
    metrics = {name: {"name": name, "value": value} for name, value in values.items() if value is not None}
    metric = result.task.metric
    score = {"name": metric, "scorer": metric, "scored_samples": result.arm.n, "unscored_samples": result.arm.n_invalid}
    return {
        "total_samples": result.task.n,
        "completed_samples": result.task.n - len(result.arm.failed_items),
        "scores": [{**score, "metrics": metrics}],
        "metadata": {"undefined": result.arm.undefined},
    }


def _sample(item: Item, result: Result) -> dict[str, object]:
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
        "output": {"model": f"proxytune/{result.arm_name}", "choices": said, "completion": first},
        "scores": {} if item.score is None else {result.task.metric: score},
        "metadata": {"log_probabilities": item.log_probabilities, "alpha": item.alpha},
    }
    if item.error is not None:
        sample["error"] = {"message": item.error, "traceback": "", "traceback_ansi": ""}
    return sample
