"""One arm through lm-eval: which items, which metric, which values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import lm_eval
import numpy as np
from lm_eval.api.task import Task

from proxytune.compat.lm_eval import compiled_once, keep_only_requests, quiet
from proxytune.errors import UserError, unknown_name
from proxytune.experiment.answers.shared import SharedAnswers
from proxytune.experiment.lm_eval.arm_model import ArmLM
from proxytune.experiment.planning import Items
from proxytune.experiment.summary import Outcome
from proxytune.fusion.arm import Arm
from proxytune.statistics import Values, as_values, mean
from proxytune.tasks import TaskInfo, data_record


def evaluate(shared: SharedAnswers, arm: Arm, task: Task, info: TaskInfo, items: Items) -> Outcome:
    """What `arm` does on the items of `task`; the first arm evaluated has the answers of all arms computed.

    Uses lm-eval's `evaluate`; its `simple_evaluate` would describe the machine anew, for seconds, at every call.
    Raises UserError for a headline metric that has no value per item.
    """
    task.set_fewshot_seed(items.seed)
    with quiet(), compiled_once(), np.errstate(invalid="ignore"):  # of choices that are all ruled out
        lm = ArmLM(shared, arm, items.seed)
        loaded = {"tasks": {task.task_name: task}}
        results: Any = lm_eval.evaluate(
            lm=lm,
            task_dict=loaded,
            limit=items.limit,
            bootstrap_iters=0,
            log_samples=True,
            confirm_run_unsafe_code=True,  # the plan has a sandbox for it, or was refused
        )
    keep_only_requests(task)
    samples = [sample for sample in results["samples"][task.task_name] if sample["filter"] == info.filter]
    samples.sort(key=lambda sample: sample["doc_id"])
    metrics = _aggregates(results["results"][task.task_name], info.filter)
    values = _headline(task.task_name, info, samples, metrics)
    failed, left_out = lm.failed, lm.left_out
    if failed or left_out:
        # lm-eval has counted what stands in for the failed answers, and choices that are all ruled out.
        values[[sample["doc_id"] in {*failed, *left_out} for sample in samples]] = np.nan
        metrics = dict.fromkeys(metrics) | {info.metric: mean(values).value}
    data = data_record(task, [sample["doc_id"] for sample in samples])
    return Outcome(samples, values, metrics, lm.item_answers, data, failed, _end_tokens(shared, arm, task), left_out)


def _end_tokens(shared: SharedAnswers, arm: Arm, task: Task) -> list[str] | None:
    """The tokens that end the arm's answers; None where they are scored, not generated."""
    if task.OUTPUT_TYPE != "generate_until":
        return None
    ends = list(shared.ensemble.ends(arm.roles))
    return [str(token) for token in shared.ensemble.tokenizer.convert_ids_to_tokens(ends)]


def _headline(name: str, info: TaskInfo, samples: list[dict[str, Any]], metrics: Mapping[str, float | None]) -> Values:
    """[n] the headline metric's values; their mean must be what lm-eval makes of them."""
    what = f"metric {info.metric!r} of task {name!r}"
    if all(info.metric not in sample for sample in samples):
        raise unknown_name(f"metric of task {name!r}", info.metric, metrics)
    try:
        values = as_values(sample.get(info.metric) for sample in samples)
    except (TypeError, ValueError) as error:
        raise UserError(f"{what} is not one number per item, so it has no standard error") from error
    average, aggregate = mean(values).value, metrics.get(info.metric)
    if average is not None and aggregate is not None and not np.isclose(average, aggregate):
        raise UserError(f"{what} is {aggregate:g}, not the mean of its items ({average:g}): it has no standard error")
    return values


def _aggregates(results: Mapping[str, Any], filter_name: str) -> dict[str, float | None]:
    """Every metric of the filter as lm-eval aggregates it over the items."""
    aggregates = {}
    for key, value in results.items():
        metric, _, its_filter = key.partition(",")
        if its_filter == filter_name and isinstance(value, int | float) and not metric.endswith("_stderr"):
            aggregates[metric] = float(value) if math.isfinite(value) else None
    return aggregates
