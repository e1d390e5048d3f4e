"""Scoring outputs that were generated elsewhere, with the metric functions of the tasks themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from lm_eval.api.task import ConfigurableTask

from proxytune.errors import UserError, unknown_name
from proxytune.tasks.loading import build_task
from proxytune.tasks.local import read_jsonl
from proxytune.tasks.registry import find, full_names, task_names
from proxytune.tasks.rows import Columns


def score_outputs(task: str, style: str | None, path: str | Path) -> dict[str, Any]:
    """{task, n, metric: value, ...} of a JSON-lines file with one output a row; blank_lines where some were skipped.

    A row has the generated text as `output` and what the metric compares it with; files published with a paper may use
    the names found there (`metadata.proxytune.published` in the task's YAML). A metric no item has a value for is nan.
    Raises UserError: a task or style that is unknown or not scored from text, no such file, a bad line, a column
    missing or of another kind, no rows.
    """
    (name,) = full_names([task], style)
    ours = find(name).ours if name in task_names() else {}
    if "outputs" not in ours:
        raise _not_scorable(task, name)
    file = read_jsonl(Path(path), Columns(ours["outputs"], ours.get("published")))
    scorer = _scorer(name)
    scores = [scorer.process_results(row, [row["output"]]) for row in file.rows]
    counts = {"n": len(file.rows)} | ({"blank_lines": file.blank} if file.blank else {})
    return {"task": name, **counts} | {m: of([score[m] for score in scores]) for m, of in scorer.aggregation().items()}


def _not_scorable(task: str, name: str) -> UserError:
    """The error for `task`, called `name` in its style: the styles in which it is scored, or what its YAML lacks."""
    scorable = [known for known in task_names() if "outputs" in find(known).ours]
    styles = [known.removeprefix(f"{task}_") for known in scorable if known.startswith(f"{task}_")]
    if styles:
        return UserError(f"task {name!r} is not scored from generated text: give style={' or '.join(styles)}.")
    if name in task_names():
        return UserError(f"task {name!r} is not scored from generated text: its YAML names no `outputs:`.")
    return unknown_name("task to score from text", name, scorable)


def _scorer(name: str) -> ConfigurableTask:
    """The task without its data and prompts: its metrics alone."""
    nothing = Dataset.from_dict({"output": [""]})
    no_data = {"training_split": None, "validation_split": None, "fewshot_split": None, "test_split": "outputs"}
    no_prompt = {"process_docs": None, "doc_to_text": "", "doc_to_target": ""}
    return build_task(name, {**no_data, **no_prompt, "custom_dataset": lambda **_: {"outputs": nothing}})
