"""Scoring outputs that were generated elsewhere, with the metric functions of the tasks themselves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset

from proxytune.errors import UserError
from proxytune.tasks.loading import build_task, full_names, task_config
from proxytune.tasks.local import listing, read_jsonl


def score_outputs(task: str, style: str | None, path: str | Path) -> dict[str, Any]:
    """{task, n, metric: value, ...} of a JSON-lines file with one output a row.

    A row has the generated text as `output` and what the metric compares it with; files published with a paper may use
    the names found there (`metadata.proxytune.outputs` in the task's YAML). A metric no item has a value for is nan.
    Raises UserError: unknown task or style, no such file, a bad line, a column missing, no rows.
    """
    (name,) = full_names([task], style)
    names = (task_config(name)["metadata"].get("proxytune") or {}).get("outputs")
    if names is None:
        raise UserError(f"task {name!r} is not scored from generated text.")
    rows = [_renamed(row, names, f"{path}, row {i}") for i, row in enumerate(read_jsonl(Path(path), ()), start=1)]
    scorer = _scorer(name)
    scores = [scorer.process_results(row, [row["output"]]) for row in rows]
    aggregations = scorer.aggregation()
    return {"task": name, "n": len(rows)} | {m: aggregations[m]([score[m] for score in scores]) for m in aggregations}


def _renamed(row: Mapping[str, Any], names: Mapping[str, str], where: str) -> dict[str, Any]:
    """`row` under our own column names; `names` gives the published name of each of them."""
    renamed = {ours: row.get(ours, row.get(theirs)) for ours, theirs in names.items()}
    for ours, theirs in names.items():
        if not isinstance(renamed[ours], str):
            either = repr(ours) if ours == theirs else f"{ours!r} (or {theirs!r})"
            raise UserError(f"{where} has no text {either}; it has {listing(row)}.")
    return renamed


def _scorer(name: str) -> Any:
    """The task without its data and prompts: its metrics alone."""
    nothing = Dataset.from_dict({"output": [""]})
    config = task_config(name)
    split = config.get("test_split") or config["validation_split"]
    no_data = {"custom_dataset": lambda **_: {split: nothing}, "training_split": None, "fewshot_split": None}
    return build_task(name, {**no_data, "process_docs": None, "doc_to_text": "", "doc_to_target": ""})
