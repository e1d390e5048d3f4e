"""What a run will do, after all checks that are possible before models load."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.task import Task

from proxytune.errors import UserError, unknown_name
from proxytune.execution import Isolation, Sandbox
from proxytune.experiment.arm_spec import ArmSpec, arm_specs
from proxytune.experiment.arms import TaskArms, own, resolve
from proxytune.models import FamilySpec, Source, check
from proxytune.models.api.endpoint import Endpoint
from proxytune.tasks import NO_JUDGES, Judged, Judges, RunsCode, TaskInfo, brought_by_family, load_task, task_info
from proxytune.tasks.judges import NAMES


@dataclass(frozen=True)
class Items:
    """Which items of the tasks, in which form."""

    data_dir: str | Path | None
    """None: the family's own, or the hub."""
    limit: int | None
    num_fewshot: int | None
    seed: int

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"seed={self.seed} is not allowed: it is an integer from 0")
        if self.limit is not None and self.limit < 1:
            raise UserError(
                f"limit={self.limit} would evaluate no items: give an integer from 1, or null for all items"
            )

    def task(self, name: str, family_data: str | Path | None) -> Task:
        """The task as lm-eval has it, with its data; those in `family_data` serve where no `data_dir` was given."""
        # Some tasks draw from the global generators.
        random.seed(self.seed)
        np.random.seed(self.seed % 2**32)
        if self.data_dir is not None:
            return load_task(name, self.data_dir, self.num_fewshot)
        with brought_by_family(name, family_data):
            return load_task(name, family_data, self.num_fewshot)


@dataclass(frozen=True)
class Plan:
    """A task that is known to load, with its arms."""

    task: str
    lm_task: Task
    """As lm-eval has it."""
    info: TaskInfo
    arms: TaskArms

    @property
    def roles(self) -> set[str]:
        """The members that some arm needs."""
        return {role for arm in self.arms.present.values() for role in arm.roles}


def check_run(
    family: FamilySpec | Mapping[str, Any],
    tasks: Sequence[str],
    arms: Mapping[str, ArmSpec | Mapping[str, Any]],
    *,
    data_dir: str | Path | None = None,
    seed: int = 0,
    limit: int | None = None,
    num_fewshot: int | None = None,
    only: Sequence[str] | None = None,
    execution: Isolation | None = None,
    judges: Judges = NO_JUDGES,
) -> None:
    """Raises UserError for what `run` would refuse before it loads a model; the arguments are those of `run`."""
    make_plans(FamilySpec.of(family), tasks, arms, only, Items(data_dir, limit, num_fewshot, seed), execution, judges)


def make_plans(
    family: FamilySpec,
    tasks: Sequence[str],
    arms: Mapping[str, ArmSpec | Mapping[str, Any]],
    only: Sequence[str] | None,
    items: Items,
    execution: Isolation | None = None,
    judges: Judges = NO_JUDGES,
) -> list[Plan]:
    """One plan per task; `execution` is the isolation in which generated programs run, None for not at all.
    `judges` are for tasks whose outputs are judged.

    Raises UserError for names, files and members that are not there or do not fit, and for tasks that run programs
    where they must not, or cannot be isolated.
    """
    plans = plans_unchecked(family, tasks, arms, only, items)
    _allow_execution([plan.lm_task for plan in plans], execution)
    _name_judges([plan.lm_task for plan in plans], judges)
    check(family, set().union(*(plan.roles for plan in plans)))
    for plan in plans:
        _check_endpoint(plan, family.base)
    return plans


def plans_unchecked(
    family: FamilySpec,
    tasks: Sequence[str],
    arms: Mapping[str, ArmSpec | Mapping[str, Any]],
    only: Sequence[str] | None,
    items: Items,
) -> list[Plan]:
    """`make_plans` without looking at the members' files, some of which may not exist."""
    if not tasks:
        raise UserError("no tasks to evaluate: give at least one")
    for task in tasks:
        if tasks.count(task) > 1:
            raise UserError(f"task {task!r} is named twice")
    chosen = _only(arm_specs(arms), only)
    loaded = {name: _load(name, family, items) for name in tasks}
    unseen = any(own(family.experts, info.expert) is not None for _, info in loaded.values())
    return [
        Plan(name, task, info, _resolved(chosen, family, name, info, unseen)) for name, (task, info) in loaded.items()
    ]


def _check_endpoint(plan: Plan, base: Source | Endpoint) -> None:
    """Raises UserError for a task that needs more of a base behind an endpoint than letters to choose from."""
    if isinstance(base, Source) or base.tokenizer is not None or "base" not in plan.roles:
        return
    if plan.lm_task.OUTPUT_TYPE != "multiple_choice":
        raise UserError(
            f"task {plan.task!r} needs more of {base.model} than the probabilities of single letters: give "
            "models.base.tokenizer (the endpoint's own, which must be the family's), or a task with lettered choices"
        )


def _load(name: str, family: FamilySpec, items: Items) -> tuple[Task, TaskInfo]:
    task = items.task(name, family.data_dir)
    _check(task)
    return task, task_info(task)


def _resolved(specs: Mapping[str, ArmSpec], family: FamilySpec, name: str, info: TaskInfo, unseen: bool) -> TaskArms:
    arms = resolve(specs, family, name, info.expert, unseen=unseen)
    if not arms.present:
        raise UserError(f"no arm is left for task {name!r}: {'; '.join(dict.fromkeys(arms.missing.values()))}")
    return arms


def _check(task: Task) -> None:
    """Raises UserError for a task that an arm cannot answer, or that has no items."""
    name = task.task_name
    if getattr(task, "UNSAFE_CODE", False) and not isinstance(task, RunsCode):
        raise UserError(f"task {name!r} runs code that models write without isolation, which is not supported")
    if getattr(task, "MULTIMODAL", False):
        raise UserError(f"task {name!r} needs a model that reads more than text")
    if len(task.eval_docs) == 0:
        raise UserError(f"task {name!r} has no items")


def _allow_execution(tasks: Sequence[Task], execution: Isolation | None) -> None:
    """Gives the tasks that run programs their sandbox; raises UserError where one must not, or none does."""
    running = [task for task in tasks if isinstance(task, RunsCode)]
    if running and execution is None:
        raise UserError(
            f"task {running[0].task_name!r} runs code that models write: give execute=true to allow it, in isolation"
        )
    if not running and execution is not None:
        raise UserError("execute=true has no effect: none of the tasks runs code that models write; leave it out")
    for task in running:
        task.sandbox = Sandbox(execution or "bubblewrap")


def _name_judges(tasks: Sequence[Task], judges: Judges) -> None:
    """Gives the tasks that are judged their judges; raises UserError for one that is missing, or that none needs."""
    judged = [task for task in tasks if isinstance(task, Judged)]
    for task in judged:
        task.take(judges)
    needed = {task.kind for task in judged}
    for kind in vars(judges).keys() - needed:
        if getattr(judges, kind) is not None:
            raise UserError(f"task.{NAMES[kind]} has no effect: none of the tasks needs it; leave it out")


def _only(arms: Mapping[str, ArmSpec], only: Sequence[str] | None) -> dict[str, ArmSpec]:
    for name in only or ():
        if name not in arms:
            raise unknown_name("arm in only", name, arms)
    chosen = {name: arm for name, arm in arms.items() if only is None or name in only}
    if not chosen:
        raise UserError("no arms to evaluate: give at least one")
    return chosen
