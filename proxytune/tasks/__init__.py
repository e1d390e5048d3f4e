"""The papers' evaluation tasks as lm-eval task YAMLs, and how to load them. See README.md in this folder."""

from proxytune.tasks.examples import training_examples
from proxytune.tasks.loading import TaskInfo, data_record, load_task, task_info
from proxytune.tasks.local import brought_by_family
from proxytune.tasks.outputs import score_outputs
from proxytune.tasks.registry import TASKS_DIR, full_names, task_manager, task_names

__all__ = [
    "TASKS_DIR",
    "TaskInfo",
    "brought_by_family",
    "data_record",
    "full_names",
    "load_task",
    "score_outputs",
    "task_info",
    "task_manager",
    "task_names",
    "training_examples",
]
