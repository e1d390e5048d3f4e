"""From what the arms answered to one task's record and its items. The record's fields are listed in `runner.run`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from proxytune.engines.requests import Answer
from proxytune.experiment.answers.keys import rule_facts
from proxytune.experiment.answers.shared import Failed
from proxytune.experiment.arms import TaskArms
from proxytune.experiment.lm_eval.arm_model import ItemAnswer
from proxytune.experiment.statistics import (
    Estimate,
    Ratio,
    Values,
    gaps_closed,
    mean,
    paired_difference,
    relative_performance,
)
from proxytune.fusion.arm import Arm
from proxytune.tasks import TaskInfo

_DIGITS = 6
"""Decimals of weights and log-probabilities in the items' file; the answer store keeps them all."""


@dataclass(frozen=True)
class Outcome:
    """What one arm did on a task: lm-eval's samples in item order, the headline values [n], all metrics' aggregates."""

    samples: list[dict[str, Any]]
    values: Values
    metrics: dict[str, float | None]
    answers: Mapping[int, list[ItemAnswer]]
    data: Mapping[str, Any]
    """Where the items come from (`tasks.data_record`)."""
    failed: Mapping[int, str]
    """Items at which the arm failed -> the error; their value is NaN."""


def task_record(info: TaskInfo, found: TaskArms, outcomes: Mapping[str, Outcome], seed: int) -> dict[str, Any]:
    """The task's entry in `results.json`. `outcomes` by arm name; at least one."""
    some = next(iter(outcomes.values()))
    gaps = _gaps(info, found, outcomes, seed)
    return {
        "metric": info.metric,
        "higher_is_better": info.higher_is_better,
        "expert": info.expert,
        "n": len(some.values),
        "data": some.data,
        "n_truncated": sum(any(one.cut > 0 for one in answers) for answers in some.answers.values()),
        "missing": found.missing,
        "references": found.references,
        "arms": {name: _arm_record(found, name, outcomes, gaps[name]) for name in outcomes},
    }


def item_rows(info: TaskInfo, found: TaskArms, outcomes: Mapping[str, Outcome]) -> Iterator[dict[str, Any]]:
    """One row per item: prompt, target, and each arm's output, value and chosen weights (per expert, per token)."""
    for i, sample in enumerate(next(iter(outcomes.values())).samples):
        item = sample["doc_id"]
        answers = next(iter(outcomes.values())).answers[item]
        yield {
            "doc_id": item,
            "prompt": sample["arguments"][0][0],
            "choices": [arguments[1] for arguments in sample["arguments"]] if _is_choice(sample) else None,
            "target": sample["target"],
            "truncated_tokens": sum(one.cut for one in answers),
            "arms": {name: _item_arm(info, found.arms[name], outcome, i) for name, outcome in outcomes.items()},
        }


def _item_arm(info: TaskInfo, arm: Arm, outcome: Outcome, i: int) -> dict[str, Any]:
    """What the arm did at the i-th item."""
    item = outcome.samples[i]["doc_id"]
    if item in outcome.failed:
        return {"output": None, "answer": None, info.metric: None, "weights": None, "error": outcome.failed[item]}
    return {
        "output": _output(outcome.samples[i]),
        "answer": _one(outcome.samples[i]["filtered_resps"]),
        info.metric: float(outcome.values[i]),
        "weights": _item_weights(arm, outcome.answers[item]),
    }


def _gaps(info: TaskInfo, found: TaskArms, outcomes: Mapping[str, Outcome], seed: int) -> dict[str, Ratio]:
    """Each arm's gap closed, or why there is none."""
    if "base" not in found.references:
        return dict.fromkeys(outcomes, Ratio(None, None, "no arm is the base model alone"))
    if "tuned" not in found.references:
        return dict.fromkeys(outcomes, Ratio(None, None, _no_tuned(found)))
    base, tuned = (outcomes[found.references[reference]].values for reference in ("base", "tuned"))
    values = {name: outcome.values for name, outcome in outcomes.items()}
    return gaps_closed(values, base, tuned, higher_is_better=info.higher_is_better, seed=seed)


def _no_tuned(found: TaskArms) -> str:
    return "; ".join(found.missing.values()) or "no arm is the tuned model alone"


def _arm_record(found: TaskArms, name: str, outcomes: Mapping[str, Outcome], gap: Ratio) -> dict[str, Any]:
    arm, outcome = found.arms[name], outcomes[name]
    estimate = mean(outcome.values)
    relative = Ratio(None, None, _no_tuned(found))
    if "tuned" in found.references:
        relative = relative_performance(estimate, mean(outcomes[found.references["tuned"]].values))
    return {
        **asdict(estimate),
        "gap_closed": gap.value,
        "gap_closed_ci": gap.interval,
        "relative_performance": relative.value,
        "failed_items": outcome.failed,
        "undefined": _undefined(estimate, gap, relative, outcome),
        "metrics": outcome.metrics,
        "differences": {
            reference: asdict(paired_difference(outcome.values, outcomes[other].values))
            for reference, other in found.references.items()
        },
        "roles": arm.roles,
        "rule": None if arm.rule is None else _rule_record(arm),
        "weights": _weights(arm, outcome),
    }


def _undefined(estimate: Estimate, gap: Ratio, relative: Ratio, outcome: Outcome) -> dict[str, str]:
    """Field -> why it is None."""
    reasons = {
        "value": None if estimate.value is not None else "no valid item",
        "stderr": None if estimate.stderr is not None else "fewer than two valid items",
        "gap_closed": gap.why if gap.value is None else None,
        "gap_closed_ci": gap.why if gap.interval is None else None,
        "relative_performance": relative.why,
        "metrics": f"{len(outcome.failed)} items failed" if outcome.failed else None,
    }
    return {field: why for field, why in reasons.items() if why is not None}


def _rule_record(arm: Arm) -> dict[str, Any]:
    assert arm.rule is not None
    told = {name: getattr(arm.rule, name) for name in ("id", "formula", "paper")}
    return told | {"parameters": rule_facts(arm.rule)["parameters"]}


def _weights(arm: Arm, outcome: Outcome) -> dict[str, dict[str, float | None]]:
    """Mean and standard deviation of the alpha each expert got, over all tokens of all answers."""
    chosen: list[list[float]] = [[] for _ in arm.experts]
    for answer in _answers(one for answers in outcome.answers.values() for one in answers):
        for expert, weights in zip(chosen, answer.weights, strict=True):
            expert.extend(weights)
    return {
        role.removeprefix("expert:"): {
            "mean": float(np.mean(weights)) if weights else None,
            "sd": float(np.std(weights)) if weights else None,
        }
        for role, weights in zip(arm.experts, chosen, strict=True)
    }


def _item_weights(arm: Arm, answers: list[ItemAnswer]) -> dict[str, list[list[float]]] | None:
    """By expert, one list of weights per request of the item."""
    if arm.rule is None:
        return None
    return {
        role.removeprefix("expert:"): [[round(w, _DIGITS) for w in answer.weights[t]] for answer in _answers(answers)]
        for t, role in enumerate(arm.experts)
    }


def _answers(answers: Iterable[ItemAnswer]) -> Iterator[Answer]:
    """Without those that failed."""
    return (one.answer for one in answers if not isinstance(one.answer, Failed))


def _is_choice(sample: Mapping[str, Any]) -> bool:
    arguments = sample["arguments"][0]
    return len(arguments) > 1 and isinstance(arguments[1], str)


def _output(sample: Mapping[str, Any]) -> Any:
    """What the arm said: a text (several with repetitions), or the log-probability of each choice."""
    said = [_one([_said(reply) for reply in replies]) for replies in sample["resps"]]
    return said if _is_choice(sample) else _one(said)


def _said(reply: Any) -> str | float:
    """A text, or a log-probability, which may come with whether it is the greedy choice."""
    if isinstance(reply, str):
        return reply
    return round(float(reply[0] if isinstance(reply, tuple | list) else reply), _DIGITS)


def _one(values: Any) -> Any:
    """The only element of a list of one."""
    return values[0] if len(values) == 1 else values
