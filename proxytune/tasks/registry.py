"""Where a task is found: our own YAMLs, the style table over lm-eval's, or lm-eval's thousands."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import lm_eval.tasks
import yaml
from lm_eval.tasks import TaskManager

from proxytune.errors import UserError, unknown_name

TASKS_DIR = Path(__file__).parent


class Entry(NamedTuple):
    """A task in lm-eval's terms, and what we know about it."""

    manager: TaskManager
    task: str
    """Its name there."""
    config: Mapping[str, Any]
    """Its YAML as lm-eval's index holds it, functions not imported."""
    ours: Mapping[str, Any]
    """The YAML's `metadata.proxytune`; empty for a task that is lm-eval's alone."""


@cache
def task_manager() -> TaskManager:
    """The tasks of this folder alone: a scan of lm-eval's thousands takes seconds and waits until one is asked for."""
    return _manager_of(TASKS_DIR)


@cache
def _manager_of(folder: Path) -> TaskManager:
    return TaskManager(include_path=str(folder), include_defaults=False)


@cache
def _all_of_lm_eval() -> TaskManager:
    return TaskManager()


@cache
def _lm_eval_style() -> dict[str, dict[str, Any]]:
    return yaml.safe_load((TASKS_DIR / "lm_eval_style.yml").read_text(encoding="utf-8"))


def task_names() -> list[str]:
    """The names of the built-in tasks, sorted."""
    return sorted([*task_manager().all_subtasks, *_lm_eval_style()])


def full_names(names: Sequence[str], style: str | None = None) -> list[str]:
    """`names` in a style: `gsm8k` in `liu2024` is `gsm8k_liu2024`; without a style a name stands for itself.

    Raises UserError for an empty list and for a style that a task does not come in.
    """
    if isinstance(names, str) or not names:
        raise UserError(f"task.names: a list of at least one task is expected, not {names!r}.")
    return list(names) if style is None else [_in_style(name, style) for name in names]


def _in_style(name: str, style: str) -> str:
    known = task_names()
    if f"{name}_{style}" in known:
        return f"{name}_{style}"
    styles = [other.removeprefix(f"{name}_") for other in known if other.startswith(f"{name}_")]
    if styles:
        raise unknown_name(f"style of task {name!r} (task.style)", style, styles)
    in_style = [other.removesuffix(f"_{style}") for other in known if other.endswith(f"_{style}")]
    raise unknown_name(f"task in style {style!r} (task.names)", name, in_style)


def find(name: str) -> Entry:
    """Raises UserError for an unknown task, with the nearest names, and for a group of tasks."""
    if name in _lm_eval_style():
        ours = _lm_eval_style()[name]
        manager = _manager_of(Path(lm_eval.tasks.__file__).parent / ours["folder"])
        return Entry(manager, ours["task"], manager.task_index[ours["task"]].cfg or {}, ours)
    manager = task_manager() if name in task_manager().all_subtasks else _all_of_lm_eval()
    if name in manager.all_subtasks:
        config = manager.task_index[name].cfg or {}
        metadata = config.get("metadata")
        return Entry(manager, name, config, metadata.get("proxytune", {}) if isinstance(metadata, dict) else {})
    if name in manager.all_tasks:
        raise UserError(f"task {name!r} is a group of lm-eval; name its tasks one by one.")
    near = difflib.get_close_matches(str(name), manager.all_subtasks, n=3)
    raise unknown_name("task", name, [*task_names(), *near])
