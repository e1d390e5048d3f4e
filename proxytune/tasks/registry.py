"""Where a task is found: our own YAMLs, the style table over lm-eval's, or lm-eval's thousands."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import lm_eval.tasks
import yaml
from lm_eval.api.task import ALL_OUTPUT_TYPES, TaskConfig
from lm_eval.tasks import TaskManager

from proxytune.compat.lm_eval import task_yaml
from proxytune.errors import UserError, unknown_name

TASKS_DIR = Path(__file__).parent
_KEYS = {"class", "tag", *(field.name for field in fields(TaskConfig))}
"""What may stand in a task's YAML,"""
_OURS = ("metric", "filter", "expert", "paper", "files", "columns", "outputs", "published")
"""and in its `metadata.proxytune`."""


class Entry(NamedTuple):
    """A task in lm-eval's terms, and what we know about it."""

    manager: TaskManager
    task: str
    """Its name there."""
    config: Mapping[str, Any]
    """Its YAML as lm-eval's index holds it, functions not imported."""
    ours: Mapping[str, Any]
    """The YAML's `metadata.proxytune`; empty for a task that is lm-eval's alone."""

    @property
    def file(self) -> Path | None:
        """The YAML."""
        return task_yaml(self.manager, self.task)[1]


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
    raise _unknown(f"task in style {style!r} (task.names)", name, in_style)


def find(name: str) -> Entry:
    """Raises UserError for an unknown task, with the nearest names, for a group, and for a wrong YAML of ours."""
    if name in _lm_eval_style():
        ours = _lm_eval_style()[name]
        manager = _manager_of(Path(lm_eval.tasks.__file__).parent / ours["folder"])
        return Entry(manager, ours["task"], task_yaml(manager, ours["task"])[0], ours)
    manager = task_manager() if name in task_manager().all_subtasks else _all_of_lm_eval()
    if name in manager.all_subtasks:
        config = task_yaml(manager, name)[0]
        metadata = config.get("metadata")
        entry = Entry(manager, name, config, metadata.get("proxytune", {}) if isinstance(metadata, dict) else {})
        if manager is task_manager():
            _check(entry)
        return entry
    if name in manager.all_tasks:
        raise UserError(f"task {name!r} is a group of lm-eval; name its tasks one by one.")
    near = difflib.get_close_matches(str(name), manager.all_subtasks, n=3)
    raise _unknown("task", name, [*task_names(), *near])


def _check(entry: Entry) -> None:
    """Raises UserError for what is wrong with a YAML by itself, without its functions and data."""
    for key in entry.config:
        if key not in _KEYS:
            raise unknown_name(f"key in {entry.file}", key, _KEYS)
    for key in entry.ours:
        if key not in _OURS:
            raise unknown_name(f"key of metadata.proxytune in {entry.file}", key, _OURS)
    if "files" in entry.ours and "columns" not in entry.ours:
        raise UserError(f"{entry.file}: metadata.proxytune names files, but no columns of theirs to read.")
    if not {"class", "test_split", "validation_split"} & entry.config.keys():
        raise UserError(f"{entry.file}: a test_split (or validation_split) is missing; its items are evaluated.")
    output_type = entry.config.get("output_type", TaskConfig.output_type)
    if output_type not in ALL_OUTPUT_TYPES:
        raise unknown_name(f"output_type in {entry.file}", output_type, ALL_OUTPUT_TYPES)


def _unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a task that is not there, or whose YAML does not parse: lm-eval leaves such a file out silently."""
    for file in sorted(TASKS_DIR.glob("**/*.yaml")):
        try:
            with file.open("rb") as text:
                yaml.compose(text)
        except yaml.YAMLError as error:
            return UserError(f"unknown {kind} {name!r}; but {file} is not valid YAML, so its task is missing: {error}")
    return unknown_name(kind, name, known)
