"""Where a task is found: our own YAMLs, the style table over lm-eval's, or lm-eval's thousands."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import lm_eval.tasks
import yaml
from lm_eval.api.task import ALL_OUTPUT_TYPES, TaskConfig
from lm_eval.tasks import TaskManager
from pydantic import AfterValidator, Field

from proxytune.compat.lm_eval import task_yaml
from proxytune.errors import UserError, unknown_name
from proxytune.tasks.columns import check_kind
from proxytune.validation import Strict, check

TASKS_DIR = Path(__file__).parent
_KEYS = {"class", "tag", *(field.name for field in fields(TaskConfig))}
"""The keys of a task's YAML."""
Kinds = dict[str, Annotated[str, AfterValidator(check_kind)]]
"""Column -> its kind."""


class Extras(Strict):
    """`metadata.proxytune` in a task's YAML: what lm-eval has no key for."""

    metric: str | None = None
    """the headline metric; null: the task's first"""
    filter: str | None = None
    """the lm-eval filter that the headline is read from; null: the task's first"""
    expert: str | None = None
    """the name of the expert and of the tuned model that belong to the task"""
    paper: str | None = None
    """the paper that the task is from"""
    files: dict[str, str] = Field(default_factory=dict)
    """a mapping of splits to files under a data folder"""
    columns: Kinds = Field(default_factory=dict)
    """a mapping of the columns of these files to their kinds"""
    outputs: Kinds = Field(default_factory=dict)
    """a mapping of the columns of a file of outputs to their kinds; empty: the task is not scored from text"""
    published: dict[str, str] = Field(default_factory=dict)
    """a mapping of columns of `outputs` to their other names, in files published with a paper"""


class Entry(NamedTuple):
    """A task in lm-eval's terms, and what we know about it."""

    manager: TaskManager
    task: str
    """Its name there."""
    config: Mapping[str, Any]
    """Its YAML as lm-eval's index holds it, functions not imported."""
    extras: Extras

    @property
    def file(self) -> Path | None:
        """The YAML."""
        return task_yaml(self.manager, self.task)[1]


@cache
def task_manager() -> TaskManager:
    """Only the tasks of this folder: a scan of lm-eval's thousands takes seconds and waits until one is needed."""
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
        raise UserError(f"task.names={names!r} is not allowed: it is a list of at least one task")
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
        extras = dict(_lm_eval_style()[name])
        folder, task = extras.pop("folder"), extras.pop("task")
        manager = _manager_of(Path(lm_eval.tasks.__file__).parent / folder)
        return Entry(manager, task, task_yaml(manager, task)[0], Extras(**extras))
    manager = task_manager() if name in task_manager().all_subtasks else _all_of_lm_eval()
    if name in manager.all_subtasks:
        config, file = task_yaml(manager, name)
        if manager is not task_manager():
            return Entry(manager, name, config, Extras())
        return _checked(manager, name, config, file)
    if name in manager.all_tasks:
        raise UserError(f"task {name!r} is a group of lm-eval: name its tasks one by one")
    near = difflib.get_close_matches(str(name), manager.all_subtasks, n=3)
    raise _unknown("task", name, [*task_names(), *near])


def _checked(manager: TaskManager, name: str, config: Mapping[str, Any], file: Path | None) -> Entry:
    """A task of ours. Raises UserError for what is wrong with its YAML by itself, without its functions and data."""
    for key in config:
        if key not in _KEYS:
            raise unknown_name(f"key in {file}", key, _KEYS)
    extras = _extras(config, file)
    if extras.files and not extras.columns:
        raise UserError(f"{file}: metadata.proxytune names files, but not the columns to read from them")
    if not {"class", "test_split", "validation_split"} & config.keys():
        raise UserError(f"{file}: test_split (or validation_split) is missing: its items are evaluated")
    output_type = config.get("output_type", TaskConfig.output_type)
    if output_type not in ALL_OUTPUT_TYPES:
        raise unknown_name(f"output_type in {file}", output_type, ALL_OUTPUT_TYPES)
    return Entry(manager, name, config, extras)


def _extras(config: Mapping[str, Any], file: Path | None) -> Extras:
    metadata = config.get("metadata")
    try:
        return check(
            Extras, metadata.get("proxytune", {}) if isinstance(metadata, Mapping) else {}, "metadata.proxytune"
        )
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def _unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a task that is not there, or whose YAML does not parse: lm-eval leaves such a file out silently."""
    for file in sorted(TASKS_DIR.glob("**/*.yaml")):
        try:
            with file.open("rb") as text:
                yaml.compose(text)
        except yaml.YAMLError as error:
            fault = " ".join(str(error).split())
            return UserError(f"unknown {kind} {name!r}; but {file} is not valid YAML, so its task is missing: {fault}")
    return unknown_name(kind, name, known)
