"""Tasks by name, as fresh lm-eval objects, on the hub's data or on local files."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from proxytune.errors import UserError, unknown_name
from proxytune.tasks.local import reader

TASKS_DIR = Path(__file__).parent


@dataclass(frozen=True)
class TaskInfo:
    """What an experiment must know about a task besides lm-eval's own configuration."""

    metric: str
    """The headline: a key of lm-eval's per-item samples; its results say `<metric>,<filter>`."""
    filter: str
    """The lm-eval filter the headline is read from."""
    higher_is_better: bool
    expert: str | None
    """The expert and the tuned model that belong to the task; None for a task that is not ours."""
    paper: str | None


@cache
def task_manager() -> TaskManager:
    """The built-in tasks alone: scanning lm-eval's own thousands takes seconds, so it waits until one is asked for."""
    return TaskManager(include_path=str(TASKS_DIR), include_defaults=False)


@cache
def _lm_eval_manager() -> TaskManager:
    return TaskManager()


def task_names() -> list[str]:
    """The names of the built-in tasks, sorted."""
    return list(task_manager().all_subtasks)


def full_names(names: Sequence[str], style: str | None = None) -> list[str]:
    """`names` in a style: `gsm8k` in `liu2024` is `gsm8k_liu2024`; without a style a name stands for itself.

    Raises UserError for an empty list and for a style that a task does not come in.
    """
    if isinstance(names, str) or not names:
        raise UserError(f"task.names: a list of at least one task is expected, not {names!r}.")
    if style is None:
        return list(names)
    return [_in_style(name, style) for name in names]


def _in_style(name: str, style: str) -> str:
    known = task_names()
    if f"{name}_{style}" in known:
        return f"{name}_{style}"
    styles = [other.removeprefix(f"{name}_") for other in known if other.startswith(f"{name}_")]
    if styles:
        raise unknown_name(f"style of task {name!r} (task.style)", style, styles)
    in_style = [other.removesuffix(f"_{style}") for other in known if other.endswith(f"_{style}")]
    raise unknown_name(f"task in style {style!r} (task.names)", name, in_style)


def task_info(task: ConfigurableTask) -> TaskInfo:
    """From the YAML's `metadata.proxytune`; for any other lm-eval task its first metric and first filter."""
    ours = (task.config.metadata or {}).get("proxytune", {})
    metric = ours.get("metric", next(iter(task.higher_is_better())))
    filters = [item["name"] for item in task.config.filter_list or []]
    return TaskInfo(
        metric=metric,
        filter=ours.get("filter", filters[0] if filters else "none"),
        higher_is_better=task.higher_is_better()[metric],
        expert=ours.get("expert"),
        paper=ours.get("paper"),
    )


def load_task(
    name: str, data_dir: str | Path | None = None, num_fewshot: int | None = None, split: str | None = None
) -> ConfigurableTask:
    """A fresh task (lm-eval's hold the state of one evaluation), its data from `data_dir` or, if None, from the hub.

    `num_fewshot` None is the YAML's own number (0 unless it says otherwise); examples come from its `fewshot_split`.
    `split` is what is evaluated; None is the YAML's test split, or its validation split where it has no other.
    Raises UserError: unknown task, a group of tasks, data that cannot be had or read, no split to take examples from.
    """
    config = task_config(name)
    evaluated = {} if split is None else {"test_split": split}
    return build_task(name, {**_data(name, config, data_dir), **_fewshot(name, config, num_fewshot), **evaluated})


def task_config(name: str) -> dict[str, Any]:
    """The YAML of a task as lm-eval's index holds it, functions not imported. Raises UserError for an unknown one."""
    return _manager_of(name).task_index[name].cfg or {}


def build_task(name: str, overrides: Mapping[str, Any]) -> ConfigurableTask:
    """A task with some fields of its YAML replaced; its data is loaded here."""
    try:
        # a group of one: lm-eval's way to override fields of a registered task
        return _manager_of(name).load({"group": "one", "task": [{"task": name, **overrides}]})["tasks"][name]
    except OSError as error:  # no network, no such data set, gated
        reason = str(error).splitlines()[0]
        advice = "Give local files with task.data_dir=PATH."
        raise UserError(f"task {name!r}: cannot load its data from the hub ({reason}). {advice}") from error


def _manager_of(name: str) -> TaskManager:
    if name in task_manager().all_subtasks:
        return task_manager()
    others = _lm_eval_manager()
    if name in others.all_subtasks:
        return others
    if name in others.all_tasks:
        raise UserError(f"task {name!r} is a group of lm-eval; name its tasks one by one.")
    near = difflib.get_close_matches(str(name), others.all_subtasks, n=3)
    raise unknown_name("task", name, [*task_names(), *near])


def _data(name: str, config: Mapping[str, Any], data_dir: str | Path | None) -> dict[str, Any]:
    """The overrides that make a task read local files."""
    if data_dir is None:
        return {}
    ours = (config.get("metadata") or {}).get("proxytune", {})
    if "files" not in ours:
        raise UserError(f"task {name!r} reads the hub alone; task.data_dir serves {', '.join(task_names())}.")
    folder = Path(data_dir).expanduser()
    if not folder.is_dir():
        raise UserError(f"task.data_dir: no folder {folder}.")
    return {"custom_dataset": reader(folder, ours["files"], ours["columns"])}


def _fewshot(name: str, config: Mapping[str, Any], num_fewshot: int | None) -> dict[str, Any]:
    """The overrides for `num_fewshot` examples; with none, the split they would come from is not read at all."""
    count = config.get("num_fewshot") or 0 if num_fewshot is None else num_fewshot
    if count < 0:
        raise UserError(f"num_fewshot: a number of examples, 0 or more, is expected, not {count}.")
    if count == 0:
        return {"num_fewshot": 0, "fewshot_split": None, "fewshot_config": {"samples": []}}
    if config.get("fewshot_split") is None and config.get("training_split") is None:
        raise UserError(f"num_fewshot={count}: task {name!r} has no split to take examples from; use 0.")
    return {"num_fewshot": count}
