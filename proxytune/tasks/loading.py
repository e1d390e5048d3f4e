"""Tasks by name, as fresh lm-eval objects, on the hub's data or on local files."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from lm_eval.api.task import ConfigurableTask

from proxytune.compat.lm_eval import most_fewshot_examples
from proxytune.console import quiet_logger
from proxytune.errors import UserError, first_line, unknown_name
from proxytune.record import DataRecord
from proxytune.tasks.columns import Columns
from proxytune.tasks.data import LocalSplits, NoLocalData, has_file
from proxytune.tasks.documents import BySubject
from proxytune.tasks.registry import Entry, find, task_names

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
    name, directions, extras = task.task_name, task.higher_is_better(), find(task.task_name).extras
    metric = next(iter(directions)) if extras.metric is None else extras.metric
    if metric not in directions:
        kind = f"metric of task {name!r} (metadata.proxytune.metric, one of metric_list)"
        raise unknown_name(kind, metric, directions)
    if not isinstance(directions[metric], bool):
        what = f"task {name!r}: higher_is_better of metric {metric!r} in metric_list"
        raise UserError(f"{what} is {directions[metric]}; it is true or false")
    for other, aggregation in task.aggregation().items():
        if aggregation is None:
            what = f"task {name!r}: the aggregation of metric {other!r} in metric_list"
            raise UserError(f"{what} is not known to lm-eval: give mean, or a !function")
    filters = [item["name"] for item in task.config.filter_list or []]
    return TaskInfo(
        metric=metric,
        filter=extras.filter or next(iter(filters), "none"),
        higher_is_better=directions[metric],
        expert=extras.expert,
        paper=extras.paper,
    )


def load_task(
    name: str, data_dir: str | Path | None = None, num_fewshot: int | None = None, split: str | None = None
) -> ConfigurableTask:
    """A fresh task (lm-eval's hold the state of one evaluation), its data from `data_dir` or, if None, from the hub.

    `num_fewshot` None is the YAML's own number (0 unless it says otherwise); examples come from its `fewshot_split`.
    `split` is what is evaluated; None is the YAML's test split, or its validation split where it has no other.
    Raises UserError: unknown task, a group of tasks, data that cannot be found or read, no split to take examples from.
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
    wanted = task.config.num_fewshot
    if wanted and wanted > (most := most_fewshot_examples(task)):
        raise UserError(f"num_fewshot={wanted} is not allowed: task {name!r} has examples for at most {most}")
    if isinstance(task, BySubject):
        task.check_examples()
    return task


def build_task(name: str, overrides: Mapping[str, Any]) -> ConfigurableTask:
    """A task with some fields of its YAML replaced; its data is loaded here.

    Raises UserError: data that cannot be had, a function that is not there, a template that does not fit the data.
    """
    entry = find(name)
    try:
        with quiet_logger("lm_eval"):
            # a group of one: lm-eval's way to override fields of a registered task
            loaded = entry.manager.load({"group": "one", "task": [{"task": entry.task, **overrides}]})
    except OSError as error:  # no network, no such data set, gated
        local = "give local files with task.data_dir=PATH"
        advice = local if entry.extras.files else "it has no local form (task.data_dir): load it once with a network"
        raise UserError(f"task {name!r}: cannot load its data from the hub ({first_line(error)}): {advice}") from error
    except TemplateError as error:
        raise UserError(f"{entry.file}: a template cannot be filled in: {error}") from error
    except (AttributeError, ImportError, ValueError) as error:
        reason, found, _ = str(error).partition(" (from YAML in")  # so lm-eval says it of a !function
        if not found:
            raise
        raise UserError(f"{entry.file}: {reason}") from error
    task = loaded["tasks"][entry.task]
    task.set_config("task", name)
    return task


def data_record(task: ConfigurableTask, items: Sequence[int]) -> DataRecord:
    """Where the `items` evaluated (numbers of documents) come from; all that was read besides counts as skipped."""
    split = task.config.test_split if task.has_test_docs() else task.config.validation_split
    data, docs = task.dataset, task.eval_docs
    if isinstance(data, LocalSplits):
        file = data.source(split)
        where = {"file": str(file.path), "sha256": file.sha256}
        read, blank = len(file.rows) + file.blank, file.blank
    else:
        where = {"dataset": task.config.dataset_path, "name": task.config.dataset_name}
        read, blank = len(data[split]) if split in data else len(docs), 0
    skipped = {
        "blank lines": blank,
        "left out by the task": read - blank - len(docs),
        "beyond the limit": len(docs) - len(items),
    }
    return DataRecord(
        **where,
        split=split,
        read=read,
        skipped={why: count for why, count in skipped.items() if count},
        groups=task.items_of_groups(items) if isinstance(task, BySubject) else {},
    )


def training_examples(name: str, data_dir: str | Path | None = None) -> list[tuple[str, str]]:
    """[(prompt, answer)] of the training split: the zero-shot prompt, and what should follow it, delimiter included.

    Made by the same code as the evaluation prompts. Of several right answers the first is taken. The evaluation split
    is not read.
    Raises UserError for a task without a training split, and as `load_task` does.
    """
    split = find(name).config.get("training_split")
    if split is None:
        raise UserError(f"task {name!r} has no training split")
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


def _local_data(name: str, entry: Entry, folder: Path) -> Any:
    """What lm-eval calls, with metadata that says nothing about local files, for the data of the task."""
    extras = entry.extras
    if not extras.files:
        raise NoLocalData(f"task {name!r} only reads the hub; task.data_dir is for {', '.join(task_names())}")
    if not folder.is_dir():
        raise UserError(f"task.data_dir: there is no folder {folder}")
    return lambda **_: LocalSplits(folder, extras.files, Columns(extras.columns))


def _instead_of_test(name: str, entry: Entry, folder: Path) -> str | None:
    """The validation split, if there is a file of it, none of the test split, and no model is trained on it."""
    files = entry.extras.files
    if not {"test", "validation"} <= set(files) or entry.config.get("training_split") == "validation":
        return None
    if has_file(folder, files["test"]) or not has_file(folder, files["validation"]):
        return None
    log.warning("task %s: there is no %s under %s: the validation split is evaluated", name, files["test"], folder)
    return "validation"


def _fewshot(name: str, entry: Entry, num_fewshot: int | None) -> dict[str, Any]:
    """The overrides for `num_fewshot` examples; with none, the split they would come from is not read at all."""
    count = entry.config.get("num_fewshot") or 0 if num_fewshot is None else num_fewshot
    if count < 0:
        raise UserError(f"num_fewshot={count} is not allowed: it is a number of examples, 0 or more")
    if count == 0:
        return {"num_fewshot": 0, "fewshot_split": None, "fewshot_config": {"samples": []}}
    if entry.config.get("fewshot_split") is None and entry.config.get("training_split") is None:
        raise UserError(f"num_fewshot={count}: task {name!r} has no split to take examples from: use 0")
    return {"num_fewshot": count}
