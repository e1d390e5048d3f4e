"""Scoring outputs that were generated elsewhere, with the metric functions of the tasks themselves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from lm_eval.api.task import ConfigurableTask

from proxytune.errors import UserError
from proxytune.tasks.loading import build_task
from proxytune.tasks.local import listing, read_jsonl
from proxytune.tasks.registry import find, full_names


def score_outputs(task: str, style: str | None, path: str | Path) -> dict[str, Any]:
    """{task, n, metric: value, ...} of a JSON-lines file with one output a row.

    A row has the generated text as `output` and what the metric compares it with; files published with a paper may use
    the names found there (`metadata.proxytune.outputs` in the task's YAML). A metric no item has a value for is nan.
    Raises UserError: unknown task or style, no such file, a bad line, a column missing, no rows.
    """
    (name,) = full_names([task], style)
    names = find(name).ours.get("outputs")
    if names is None:
        raise UserError(f"task {name!r} is not scored from generated text.")
    rows = [_renamed(row, names, f"{path}, row {i}") for i, row in enumerate(read_jsonl(Path(path), ()), start=1)]
    scorer = _scorer(name)
    scores = [_score(scorer, row, f"{path}, row {i}") for i, row in enumerate(rows, start=1)]
    aggregations = scorer.aggregation()
    return {"task": name, "n": len(rows)} | {m: aggregations[m]([score[m] for score in scores]) for m in aggregations}


def _score(scorer: ConfigurableTask, row: Mapping[str, Any], where: str) -> dict[str, float]:
    try:
        return scorer.process_results(row, [row["output"]])
    except (TypeError, AttributeError, KeyError) as error:  # a gold answer of another shape than the data set's
        raise UserError(f"{where} cannot be scored: {error}.") from error


def _renamed(row: Mapping[str, Any], names: Mapping[str, str], where: str) -> dict[str, Any]:
    """`row` under our own column names; `names` gives the published name of each of them."""
    renamed = {ours: row.get(ours, row.get(theirs)) for ours, theirs in names.items()}
    for ours, value in renamed.items():
        if value is None or (ours == "output" and not isinstance(value, str)):
            either = repr(ours) if ours == names[ours] else f"{ours!r} (or {names[ours]!r})"
            expected = "text" if ours == "output" else "value"
            raise UserError(f"{where} has no {expected} {either}; it has {listing(row)}.")
    return renamed


def _scorer(name: str) -> ConfigurableTask:
    """The task without its data and prompts: its metrics alone."""
    nothing = Dataset.from_dict({"output": [""]})
    no_data = {"training_split": None, "validation_split": None, "fewshot_split": None, "test_split": "outputs"}
    no_prompt = {"process_docs": None, "doc_to_text": "", "doc_to_target": ""}
    return build_task(name, {**no_data, **no_prompt, "custom_dataset": lambda **_: {"outputs": nothing}})
