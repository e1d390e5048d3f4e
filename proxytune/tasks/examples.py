"""A task's training split as pairs of prompt and answer, made by the same code as its evaluation prompts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm_eval.api.task import ConfigurableTask

from proxytune.errors import UserError
from proxytune.tasks.loading import load_task
from proxytune.tasks.registry import find


def training_examples(name: str, data_dir: str | Path | None = None) -> list[tuple[str, str]]:
    """[(prompt, answer)] of the training split: the zero-shot prompt, and what should follow it, delimiter included.

    Of several right answers the first is taken. The evaluation split is not read.
    Raises UserError for a task without a training split, and as `load_task` does.
    """
    split = find(name).config.get("training_split")
    if split is None:
        raise UserError(f"task {name!r} has no training split.")
    task = load_task(name, data_dir, num_fewshot=0, split=split)
    return [(prompt(task, doc), task.config.target_delimiter + answer(task, doc)) for doc in task.eval_docs]


def prompt(task: ConfigurableTask, doc: Mapping[str, Any]) -> str:
    """The zero-shot prompt of one document, as lm-eval builds it."""
    return task.fewshot_context(doc, num_fewshot=0, gen_prefix=task.doc_to_prefix(doc))


def answer(task: ConfigurableTask, doc: Mapping[str, Any]) -> str:
    """The (first) right answer of one document."""
    target = task.doc_to_target(doc)
    if isinstance(target, list):
        target = target[0]
    return task.doc_to_choice(doc)[target] if isinstance(target, int) else target
