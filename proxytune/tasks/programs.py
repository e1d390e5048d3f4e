"""Scoring programs that were generated elsewhere, by running them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from proxytune.atomic import write_jsonl
from proxytune.errors import UserError
from proxytune.execution import Sandbox
from proxytune.tasks.code import RunsCode
from proxytune.tasks.columns import Columns
from proxytune.tasks.data import Row, read_jsonl
from proxytune.tasks.loading import load_task
from proxytune.tasks.registry import find, task_names
from proxytune.tasks.verdicts import pass_rates


@dataclass(frozen=True)
class Execution:
    """How `score_outputs` runs programs."""

    sandbox: Sandbox = field(default_factory=Sandbox)
    data_dir: Path | None = None
    """where the problems lie; None: where the task finds them by itself"""
    verdicts: Path | None = None
    """a JSON-lines file to write, one verdict a line"""


def run_outputs(name: str, path: Path, execution: Execution) -> dict[str, Any]:
    """{task, n, timed_out, pass_at_k: value, ...} of a file of `task_id` and `output`.

    Where rows have a verdict already (`passed`), `other_than_stored` counts the verdicts that differ from it.
    Raises UserError: a task that runs no programs, a problem that it has not got, problems or samples missing.
    """
    task = _task(name, execution)
    problems = {doc["task_id"]: doc for doc in task.eval_docs}
    extras = find(name).extras
    columns = Columns(extras.outputs, extras.published)

    def check(row: Mapping[str, Any], where: str) -> Row:
        known = columns.of(row, where)
        if known["task_id"] not in problems:
            raise UserError(f"{where}: task_id = {known['task_id']!r} is not a problem of {name}")
        return known | {"stored": row.get("passed")}

    file = read_jsonl(path, check)
    figures = pass_rates(name, len(problems), task.ks)
    figures([row | {"passed": False} for row in file.rows])  # before anything runs: is the file whole?
    verdicts = task.judge([(problems[row["task_id"]], row["output"]) for row in file.rows])
    judged = [
        {"task_id": row["task_id"], "passed": verdict.passed, "why": verdict.why, "stored": row["stored"]}
        for row, verdict in zip(file.rows, verdicts, strict=True)
    ]
    if execution.verdicts is not None:
        write_jsonl(execution.verdicts, judged)
    counts = {"blank_lines": file.blank} if file.blank else {}
    stored = [row for row in judged if row["stored"] is not None]
    if stored:
        counts["other_than_stored"] = sum(row["stored"] != row["passed"] for row in stored)
    timed_out = sum(row["why"] == "timed out" for row in judged)
    return {"task": name, "n": len(judged), **counts, "timed_out": timed_out, **figures(judged)}


def _task(name: str, execution: Execution) -> RunsCode:
    if name == "ds1000_liu2024":
        raise UserError(
            "execute=true: DS-1000 is scored from stored verdicts alone, as its tests need the old libraries that it "
            "pins: run them there, and give a file of `task_id` and `passed` without execute=true"
        )
    if name not in task_names() or not find(name).config.get("unsafe_code"):
        running = [known for known in task_names() if find(known).config.get("unsafe_code")]
        raise UserError(f"execute=true: task {name!r} runs no programs; {', '.join(running)} do")
    task = load_task(name, execution.data_dir, num_fewshot=0)
    assert isinstance(task, RunsCode)
    task.sandbox = execution.sandbox
    return task
