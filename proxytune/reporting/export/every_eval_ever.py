"""Records of Every Eval Ever (https://github.com/evaleval/every_eval_ever), schema 0.3: one for each arm on each task.

`data/<task>/<developer>/<model>/<uuid>.json` has the score, `<uuid>_samples.jsonl` beside it every item, as the shared
data store requires. A single model from the hub keeps its name; any other arm is the model `proxytune/<base>-<arm>`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from uuid import UUID

from proxytune.atomic import write_json, write_jsonl
from proxytune.record import DataRecord
from proxytune.reporting.export.source import Item, Result, file_name, finished_at, results
from proxytune.reporting.report.source import Run

SCHEMA = "0.3.0"


def write(runs: Sequence[Run], folder: Path) -> list[Path]:
    """All arms but those that are `left_out`."""
    scored = [result for run in runs for result in results(run) if result.arm.value is not None]
    return [path for result in scored for path in _write(result, folder)]


def left_out(runs: Sequence[Run]) -> list[str]:
    """The arms without a score, for which the schema has no room, and why they have none."""
    return [
        f"{result.run.folder}: {result.arm_name} on {result.task_name}, which has no score "
        f"({result.arm.undefined.get('value', 'no item could be judged')})"
        for run in runs
        for result in results(run)
        if result.arm.value is None
    ]


def _write(result: Result, folder: Path) -> list[Path]:
    developer, model = _model(result).split("/")
    place = PurePosixPath("data", file_name(result.task_name), developer, model)
    name = str(UUID(bytes=result.digest[:16], version=4))
    record, samples = _record(result), [_sample(item, result) for item in result.items if item.score is not None]
    paths = [folder / place / f"{name}.json"]
    if samples:
        paths.append(folder / place / f"{name}_samples.jsonl")
        record["detailed_evaluation_results"] = {
            "format": "jsonl",
            "file_path": str(place / paths[1].name),
            "total_rows": len(samples),
            "additional_details": {"items_without_a_score": str(result.task.n - len(samples))},
        }
        write_jsonl(paths[1], samples)
    write_json(paths[0], record)
    return paths


def _model(result: Result) -> str:
    """developer/model."""
    members = result.run.record.provenance.members
    role = result.arm.roles[0] if result.arm.roles else ""
    source = members[role].source if role in members else {}
    path = str(source.get("path") or "")
    alone = result.arm.rule is None and not source.get("adapter")
    if alone and path.count("/") == 1 and not path.startswith((".", "~", "/")):
        return "/".join(file_name(part) for part in path.split("/"))
    return "proxytune/" + file_name(*filter(None, [Path(path).name, result.arm_name]))


def _evaluation(result: Result) -> str:
    return f"{result.task_name}/{_model(result)}/{finished_at(result.run).timestamp():.0f}"


def _record(result: Result) -> dict[str, object]:
    code, libraries = result.run.record.provenance.code, result.run.record.provenance.libraries
    return {
        "schema_version": SCHEMA,
        "evaluation_id": _evaluation(result),
        "evaluation_timestamp": finished_at(result.run).isoformat(),
        "retrieved_timestamp": f"{finished_at(result.run).timestamp():.0f}",
        "source_metadata": {
            "source_name": "proxytune",
            "source_type": "evaluation_run",
            "source_organization_name": "unknown",
            "evaluator_relationship": "other",
        },
        "eval_library": {
            "name": "proxytune",
            "version": code.get("version") or "unknown",
            "additional_details": {**libraries, "commit": str(code.get("commit"))},
        },
        "model_info": _model_info(result),
        "evaluation_results": [_result(result)],
    }


def _model_info(result: Result) -> dict[str, object]:
    rule, members = result.arm.rule, result.run.record.provenance.members
    alone = not _model(result).startswith("proxytune/")
    details = {
        "deployment_type": "self_deployed",
        "model_availability": "open_weights" if alone else "unknown",
        "arm": result.arm_name,
        "members": json.dumps({role: members[role].identity for role in result.arm.roles if role in members}),
    }
    if rule is not None:
        details |= {"rule": rule.id, "formula": rule.formula, "parameters": json.dumps(rule.parameters)}
    engine = {"name": "proxytune", "version": result.run.record.provenance.code.get("version") or "unknown"}
    name = _model(result)
    return {"name": name, "id": name, "inference_engine": engine, "additional_details": details}


def _result(result: Result) -> dict[str, object]:
    arm, task, provenance = result.arm, result.task, result.run.record.provenance
    asked = {"limit": provenance.limit, "num_fewshot": provenance.num_fewshot, "seed": provenance.seed}
    return {
        "evaluation_result_id": f"{result.task_name}/{task.metric}",
        "evaluation_name": result.task_name,
        "source_data": _data(result.task_name, task.data, task.n),
        "metric_config": {
            "metric_id": task.metric,
            "lower_is_better": not task.higher_is_better,
            "score_type": "continuous",
            "min_score": 0 if task.is_fraction else "-Infinity",
            "max_score": 1 if task.is_fraction else "Infinity",
        },
        "score_details": {"score": arm.value, "uncertainty": _uncertainty(result)},
        "generation_config": {
            "additional_details": {key: json.dumps(value) for key, value in asked.items()},
        },
    }


def _uncertainty(result: Result) -> dict[str, object]:
    arm = result.arm
    found: dict[str, object] = {"num_samples": arm.n}
    if arm.stderr is not None:
        found["standard_error"] = {"value": arm.stderr, "method": arm.stderr_method or "unknown"}
    if arm.interval is not None:
        low, high = arm.interval
        found["confidence_interval"] = {"lower": low, "upper": high, "confidence_level": 0.95, "method": "wilson"}
    return found


def _data(task: str, data: DataRecord, n: int) -> dict[str, object]:
    if data.dataset is None:
        file = {"file": Path(data.file).name, "sha256": str(data.sha256)} if data.file else {}
        return {"dataset_name": task, "source_type": "other", "additional_details": file}
    place = {"dataset_name": data.name or data.dataset, "source_type": "hf_dataset", "hf_repo": data.dataset}
    return {**place, **({"hf_split": data.split} if data.split else {}), "samples_number": n}


def _sample(item: Item, result: Result) -> dict[str, object]:
    attribution = {
        "turn_idx": 0,
        "source": "output.raw",
        "extracted_value": item.answer,
        "extraction_method": "custom" if item.choices is None else "likeliest choice",
        "is_terminal": True,
    }
    return {
        "schema_version": SCHEMA,
        "evaluation_id": _evaluation(result),
        "model_id": _model(result),
        "evaluation_name": result.task_name,
        "evaluation_result_id": f"{result.task_name}/{result.task.metric}",
        "sample_id": str(item.id),
        "interaction_type": "single_turn",
        "input": {"raw": item.prompt, "reference": item.targets, "choices": item.choices},
        "output": {"raw": item.outputs},
        "answer_attribution": [attribution],
        "evaluation": {"score": item.score, "is_correct": item.score == 1},
        "metadata": {"alpha": json.dumps(item.alpha)} if item.alpha else None,
    }
