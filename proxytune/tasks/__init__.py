"""The papers' evaluation tasks as lm-eval task YAMLs, and how to load them. See README.md in this folder."""

from proxytune.tasks.code import RunsCode
from proxytune.tasks.data import brought_by_family
from proxytune.tasks.judged import Judged
from proxytune.tasks.judges import NO_JUDGES, Judges, judges_of
from proxytune.tasks.loading import TaskInfo, data_record, load_task, task_info, training_examples
from proxytune.tasks.outputs import score_outputs
from proxytune.tasks.registry import TASKS_DIR, find, full_names, task_manager, task_names

__all__ = [
    "NO_JUDGES",
    "TASKS_DIR",
    "Judged",
    "Judges",
    "RunsCode",
    "TaskInfo",
    "brought_by_family",
    "data_record",
    "find",
    "full_names",
    "judges_of",
    "load_task",
    "score_outputs",
    "task_info",
    "task_manager",
    "task_names",
    "training_examples",
]
