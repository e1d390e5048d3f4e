"""Tasks by name, as fresh lm-eval objects, on the hub's data or on local files."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from lm_eval.api.task import ConfigurableTask

from proxytune.compat.lm_eval import fewshot_examples
from proxytune.console import quiet_logger
from proxytune.errors import UserError, unknown_name
from proxytune.tasks.local import LocalSplits, NoLocalData, has_file, reader
from proxytune.tasks.registry import Entry, find, task_names
from proxytune.tasks.subjects import BySubject

log = logging.getLogger(__name__)


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


def task_info(task: ConfigurableTask) -> TaskInfo:
    """From the YAML's `metadata.proxytune`; for any other lm-eval task its first metric and first filter.

    Raises UserError for a headline that is none of the task's metrics, and for a metric that cannot be aggregated.
    """
    ours = (task.config.metadata or {}).get("proxytune", {})
    metric = ours.get("metric", next(iter(task.higher_is_better())))
    if metric not in task.higher_is_better():
        kind = f"metric of task {task.config.task!r} (metadata.proxytune.metric, one of metric_list)"
        raise unknown_name(kind, metric, task.higher_is_better())
    if not isinstance(task.higher_is_better()[metric], bool):
        what = f"task {task.config.task!r}: higher_is_better of metric {metric!r} in metric_list"
        raise UserError(f"{what} is {task.higher_is_better()[metric]}; it is true or false")
    for name, aggregation in task.aggregation().items():
        if aggregation is None:
            what = f"task {task.config.task!r}: the aggregation of metric {name!r} in metric_list"
            raise UserError(f"{what} is not known to lm-eval; give mean, or a !function.")
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
    entry = find(name)
    overrides = _fewshot(name, entry, num_fewshot)
    if data_dir is not None:
        folder = Path(data_dir).expanduser()
        overrides["custom_dataset"] = _local_data(name, entry, folder)
        split = split or _instead_of_test(name, entry, folder)
    if split is not None:
        overrides["test_split"] = split
    task = build_task(name, overrides)
    examples = len(fewshot_examples(task))
    if task.config.num_fewshot > examples:
        raise UserError(
            f"num_fewshot={task.config.num_fewshot}: task {name!r} has {examples} examples to take them from."
        )
    if isinstance(task, BySubject):
        task.check_examples()
    return task


def data_record(task: ConfigurableTask, n: int) -> dict[str, Any]:
    """Where the `n` evaluated items come from: {file, sha256} or {dataset, name}; {split, read, skipped: {why: count}}.

    `read` counts the lines of the file or the rows of the split: n of them were evaluated, the others skipped.
    """
    split = task.config.test_split if task.has_test_docs() else task.config.validation_split
    data, docs = task.dataset, len(task.eval_docs)
    if isinstance(data, LocalSplits):
        file = data.source(split)
        where = {"file": str(file.path), "sha256": file.sha256}
        read, blank = len(file.rows) + file.blank, file.blank
    else:
        where = {"dataset": task.config.dataset_path, "name": task.config.dataset_name}
        read, blank = len(data[split]) if split in data else docs, 0
    skipped = {"blank lines": blank, "left out by the task": read - blank - docs, "beyond the limit": docs - n}
    return where | {"split": split, "read": read, "skipped": {why: count for why, count in skipped.items() if count}}


def build_task(name: str, overrides: Mapping[str, Any]) -> ConfigurableTask:
    """A task with some fields of its YAML replaced; its data is loaded here.

    Raises UserError: data that cannot be had, a function that is not there, a template that does not fit the data.
    """
    entry = find(name)
    fields = {"metadata": {**entry.config["metadata"], "proxytune": entry.ours}} if entry.ours else {}
    try:
        with quiet_logger("lm_eval"):
            # a group of one: lm-eval's way to override fields of a registered task
            loaded = entry.manager.load({"group": "one", "task": [{"task": entry.task, **fields, **overrides}]})
    except OSError as error:  # no network, no such data set, gated
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        advice = "Give local files with task.data_dir=PATH."
        raise UserError(f"task {name!r}: cannot load its data from the hub ({reason}). {advice}") from error
    except TemplateError as error:
        raise UserError(f"{entry.file}: a template cannot be filled in: {error}.") from error
    except (AttributeError, ImportError, ValueError) as error:
        reason, found, _ = str(error).partition(" (from YAML in")  # so lm-eval says it of a !function
        if not found:
            raise
        raise UserError(f"{entry.file}: {reason}.") from error
    task = loaded["tasks"][entry.task]
    task.set_config("task", name)
    return task


def _local_data(name: str, entry: Entry, folder: Path) -> Any:
    """What lm-eval calls for the data of a task that reads local files."""
    if "files" not in entry.ours:
        raise NoLocalData(f"task {name!r} reads the hub alone; task.data_dir serves {', '.join(task_names())}.")
    if not folder.is_dir():
        raise UserError(f"task.data_dir: no folder {folder}.")
    return reader(folder, entry.ours["files"], entry.ours["columns"])


def _instead_of_test(name: str, entry: Entry, folder: Path) -> str | None:
    """The validation split, if there is a file of it, none of the test split, and no model is trained on it."""
    files = entry.ours["files"]
    if not {"test", "validation"} <= set(files) or entry.config.get("training_split") == "validation":
        return None
    if has_file(folder, files["test"]) or not has_file(folder, files["validation"]):
        return None
    log.warning("task %s: no %s under %s; the validation split is evaluated.", name, files["test"], folder)
    return "validation"


def _fewshot(name: str, entry: Entry, num_fewshot: int | None) -> dict[str, Any]:
    """The overrides for `num_fewshot` examples; with none, the split they would come from is not read at all."""
    count = entry.config.get("num_fewshot") or 0 if num_fewshot is None else num_fewshot
    if count < 0:
        raise UserError(f"num_fewshot: a number of examples, 0 or more, is expected, not {count}.")
    if count == 0:
        return {"num_fewshot": 0, "fewshot_split": None, "fewshot_config": {"samples": []}}
    if entry.config.get("fewshot_split") is None and entry.config.get("training_split") is None:
        raise UserError(f"num_fewshot={count}: task {name!r} has no split to take examples from; use 0.")
    return {"num_fewshot": count}
