"""Scoring outputs that were generated elsewhere: by the tasks' own metrics, by their stored verdicts, or by judges."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from lm_eval.api.task import ConfigurableTask

from proxytune.errors import UserError, unknown_name
from proxytune.tasks.code import Execution, run_outputs
from proxytune.tasks.columns import Columns
from proxytune.tasks.data import read_jsonl
from proxytune.tasks.judged_outputs import Judging, judge_outputs
from proxytune.tasks.loading import build_task
from proxytune.tasks.registry import Extras, find, full_names, task_names
from proxytune.tasks.verdicts import VERDICTS, Verdicts


def score_outputs(
    task: str,
    style: str | None,
    path: str | Path,
    execution: Execution | None = None,
    judging: Judging | None = None,
) -> dict[str, Any]:
    """{task, n, metric: value, ...} of a JSON-lines file with one output a row, or with one verdict (`VERDICTS`).

    A row of outputs has the generated text as `output` and what the metric compares it with; files published with a
    paper may use the names found there (`metadata.proxytune.published` in the task's YAML). A metric no item has a
    value for is nan. With `execution` the outputs are programs, which are run; with `judging` other models judge them.
    Where there are any, `blank_lines` counts the lines that were skipped, and `repeated_questions` the rows whose
    question stood in an earlier row: these count in `n` and in the metrics.
    Raises UserError: a task or style that is unknown or not scored from text, no such file, a bad line, a column
    missing or of another kind, no rows.
    """
    name = f"{task}_{style}" if style else task
    if execution is not None and judging is not None:
        raise UserError("execute and a judge: outputs are programs or texts; give one of the two")
    if execution is not None:
        return run_outputs(name, Path(path), execution)
    if judging is not None:
        return judge_outputs(name, Path(path), judging)
    if name in VERDICTS:
        return _count_verdicts(name, VERDICTS[name], Path(path))
    (name,) = full_names([task], style)
    extras = find(name).extras if name in task_names() else Extras()
    if not extras.outputs:
        raise _not_scorable(task, name)
    columns = Columns(extras.outputs, extras.published)
    asked: Counter[str] = Counter()

    def check(row: Mapping[str, Any], where: str) -> dict[str, Any]:
        asked.update(_question(row, extras))
        return columns.of(row, where)

    file = read_jsonl(Path(path), check)
    scorer = _scorer(name)
    scores = [scorer.process_results(row, [row["output"]]) for row in file.rows]
    counts = {"blank_lines": file.blank, "repeated_questions": asked.total() - len(asked)}
    return (
        {"task": name, "n": len(file.rows)}
        | {what: count for what, count in counts.items() if count}
        | {metric: of([score[metric] for score in scores]) for metric, of in scorer.aggregation().items()}
    )


def _count_verdicts(name: str, verdicts: Verdicts, path: Path) -> dict[str, Any]:
    columns = Columns(verdicts.columns, verdicts.published)

    def check(row: Mapping[str, Any], where: str) -> dict[str, Any]:
        try:
            return columns.of(row, where)
        except UserError as error:
            if not verdicts.instead or all(row.get(column) is not None for column in verdicts.columns):
                raise
            raise UserError(f"{error}; {verdicts.instead}") from error

    file = read_jsonl(path, check)
    blank = {"blank_lines": file.blank} if file.blank else {}
    return {"task": name, "n": len(file.rows), **blank, **verdicts.figures(file.rows)}


def _question(row: Mapping[str, Any], extras: Extras) -> list[str]:
    """What the row asks, as JSON: its column with the name of the task's first (published files write it large).

    Empty where the row does not say it.
    """
    column = next(iter(extras.columns), None)
    return [json.dumps(value) for key, value in row.items() if key.lower() == column][:1]


def _not_scorable(task: str, name: str) -> UserError:
    """The error for `task`, called `name` in its style: the styles in which it is scored, or what its YAML lacks."""
    scorable = [*(known for known in task_names() if find(known).extras.outputs), *VERDICTS]
    styles = [known.removeprefix(f"{task}_") for known in scorable if known.startswith(f"{task}_")]
    if styles:
        return UserError(f"task {name!r} is not scored from generated text: give style={' or '.join(styles)}")
    if name in task_names():
        return UserError(f"task {name!r} is not scored from generated text: its YAML names no `outputs:`")
    return unknown_name("task to score from text", name, scorable)


def _scorer(name: str) -> ConfigurableTask:
    """Only the task's metrics, without its data and prompts."""
    nothing = Dataset.from_dict({"output": [""]})
    no_data = {"training_split": None, "validation_split": None, "fewshot_split": None, "test_split": "outputs"}
    no_prompt = {"process_docs": None, "doc_to_text": "", "doc_to_target": ""}
    return build_task(name, {**no_data, **no_prompt, "custom_dataset": lambda **_: {"outputs": nothing}})
