"""From what the arms answered to one task's record and its items."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from proxytune.engines.requests import Answer, Generated
from proxytune.experiment.answers.keys import rule_facts
from proxytune.experiment.answers.shared import Failed
from proxytune.experiment.arms import TaskArms
from proxytune.experiment.lm_eval.arm_model import ItemAnswer, is_ruled_out
from proxytune.fusion.arm import Arm
from proxytune.record import NO_FRACTIONS, ArmRecord, DataRecord, Estimate, RuleRecord, TaskRecord, Weights
from proxytune.statistics import (
    Design,
    Ratio,
    Values,
    are_fractions,
    gaps_closed,
    groups,
    mean,
    paired_difference,
    relative_performance,
)
from proxytune.tasks import TaskInfo

_GROUPS = {
    "subject": lambda sample: sample["doc"].get("subject"),
    "prompt": lambda sample: sample["arguments"][0][0],
}
"""What items may have in common, so that they are not independent."""
_DIGITS = 6
"""Decimals of weights and log-probabilities in the items' file; the answer store keeps them all."""


@dataclass(frozen=True)
class Outcome:
    """What one arm did on a task: lm-eval's samples in item order, the headline values [n], all metrics' aggregates."""

    samples: list[dict[str, Any]]
    values: Values
    metrics: dict[str, float | None]
    answers: Mapping[int, list[ItemAnswer]]
    data: DataRecord
    failed: Mapping[int, str]
    """Items at which the arm failed -> the error; their value is NaN."""
    end_tokens: list[str] | None = None
    """As in `ArmRecord`."""
    left_out: Collection[int] = ()
    """Items none of whose choices an endpoint gives among its likeliest tokens; their value is NaN."""

    @property
    def ruled_out(self) -> int:
        """Items at which some choices, not all, have the log-probability -inf."""
        without = {*self.failed, *self.left_out}
        kept = (answers for item, answers in self.answers.items() if item not in without)
        return sum(any(is_ruled_out(one.answer) for one in answers) for answers in kept)


def task_record(info: TaskInfo, arms: TaskArms, outcomes: Mapping[str, Outcome], seed: int) -> TaskRecord:
    """`outcomes` by arm name; at least one."""
    some = next(iter(outcomes.values()))
    grouped_by, design = _design(info, outcomes)
    gaps = _gaps(arms, outcomes, design, seed)
    return TaskRecord(
        metric=info.metric,
        higher_is_better=info.higher_is_better,
        expert=info.expert,
        n=len(some.values),
        grouped_by=grouped_by,
        n_groups=None if design.groups is None else int(design.groups.max()) + 1,
        data=some.data,
        n_truncated=sum(any(one.cut > 0 for one in answers) for answers in some.answers.values()),
        missing=arms.missing,
        references=arms.references,
        arms={name: _arm_record(arms, name, outcomes, design, gaps[name]) for name in outcomes},
    )


def item_rows(info: TaskInfo, arms: TaskArms, outcomes: Mapping[str, Outcome]) -> Iterator[dict[str, Any]]:
    """One row per item: prompt, target, and each arm's output, value and chosen weights (per expert, per token)."""
    for i, sample in enumerate(next(iter(outcomes.values())).samples):
        item = sample["doc_id"]
        answers = next(iter(outcomes.values())).answers[item]
        yield {
            "doc_id": item,
            "prompt": sample["arguments"][0][0],
            "choices": [arguments[1] for arguments in sample["arguments"]] if _is_choice(sample) else None,
            "target": sample["target"],
            **({} if sample["doc"].get("subject") is None else {"subject": sample["doc"]["subject"]}),
            "truncated_tokens": sum(one.cut for one in answers),
            "arms": {name: _item_arm(info, arms.present[name], outcome, i) for name, outcome in outcomes.items()},
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


def _design(info: TaskInfo, outcomes: Mapping[str, Outcome]) -> tuple[str | None, Design]:
    """What makes items depend on one another (their subject, or else a repeated prompt); what statistics must know."""
    values = np.concatenate([outcome.values for outcome in outcomes.values()])
    fraction = info.metric not in NO_FRACTIONS and are_fractions(values)
    samples = next(iter(outcomes.values())).samples
    for name, of in _GROUPS.items():
        numbers = groups([str(of(sample)) for sample in samples])
        if 0 < numbers.max(initial=0) < len(samples) - 1:
            return name, Design(numbers, fraction, info.higher_is_better)
    return None, Design(None, fraction, info.higher_is_better)


def _gaps(arms: TaskArms, outcomes: Mapping[str, Outcome], design: Design, seed: int) -> dict[str, Ratio]:
    """Each arm's gap closed, or why there is none."""
    if "base" not in arms.references:
        return dict.fromkeys(outcomes, Ratio(None, None, "no arm is the base model alone"))
    if "tuned" not in arms.references:
        return dict.fromkeys(outcomes, Ratio(None, None, arms.no_tuned))
    base, tuned = (outcomes[arms.references[reference]].values for reference in ("base", "tuned"))
    values = {name: outcome.values for name, outcome in outcomes.items()}
    return gaps_closed(values, base, tuned, design, seed=seed)


def _arm_record(arms: TaskArms, name: str, outcomes: Mapping[str, Outcome], design: Design, gap: Ratio) -> ArmRecord:
    arm, outcome = arms.present[name], outcomes[name]
    estimate = mean(outcome.values, design)
    relative = Ratio(None, None, arms.no_tuned)
    if "tuned" in arms.references:
        relative = relative_performance(estimate, mean(outcomes[arms.references["tuned"]].values))
    weights = _weights(arm, outcome)
    return ArmRecord(
        **dict(estimate),
        gap_closed=gap.value,
        gap_closed_ci=gap.interval,
        gap_closed_ci_method=gap.method,
        relative_performance=relative.value,
        failed_items={str(item): error for item, error in outcome.failed.items()},
        undefined=_undefined(estimate, gap, relative, outcome, weights),
        metrics=outcome.metrics,
        differences={
            reference: paired_difference(outcome.values, outcomes[other].values, design)
            for reference, other in arms.references.items()
        },
        roles=list(arm.roles),
        rule=_rule_record(arm),
        tokens=sum(_length(answer) for answer in _answers(one for some in outcome.answers.values() for one in some)),
        weights=weights,
        end_tokens=outcome.end_tokens,
        ruled_out=outcome.ruled_out,
        left_out=len(outcome.left_out),
    )


def _length(answer: Answer) -> int:
    return len(answer.tokens if isinstance(answer, Generated) else answer.logprobs)


def _undefined(
    estimate: Estimate, gap: Ratio, relative: Ratio, outcome: Outcome, weights: Mapping[str, Weights]
) -> dict[str, str]:
    """Field -> why it is None."""
    reasons = {
        "value": None if estimate.value is not None else "no valid item",
        "stderr": None if estimate.stderr is not None else _no_error(estimate),
        "gap_closed": gap.why if gap.value is None else None,
        "gap_closed_ci": gap.why if gap.interval is None else None,
        "relative_performance": relative.why,
        "metrics": _no_metrics(outcome),
        "weights": "no finite weights" if any(one.mean is None for one in weights.values()) else None,
    }
    return {field: why for field, why in reasons.items() if why is not None}


def _no_metrics(outcome: Outcome) -> str | None:
    counts = {"failed": len(outcome.failed), "were left out": len(outcome.left_out)}
    return ", ".join(f"{count} items {what}" for what, count in counts.items() if count) or None


def _no_error(estimate: Estimate) -> str:
    return "fewer than two valid items" if estimate.n < 2 else "items do not vary, and the metric has no known range"


def _rule_record(arm: Arm) -> RuleRecord | None:
    rule = arm.rule
    if rule is None:
        return None
    return RuleRecord(id=rule.id, formula=rule.formula, paper=rule.paper, parameters=rule_facts(rule)["parameters"])


def _weights(arm: Arm, outcome: Outcome) -> dict[str, Weights]:
    """Mean and standard deviation of the alpha each expert got, over all tokens of all answers."""
    chosen: list[list[float]] = [[] for _ in arm.experts]
    for answer in _answers(one for answers in outcome.answers.values() for one in answers):
        for expert, weights in zip(chosen, answer.weights, strict=True):
            expert.extend(weights)
    return {
        role.removeprefix("expert:"): _mean_and_sd(weights) for role, weights in zip(arm.experts, chosen, strict=True)
    }


def _mean_and_sd(weights: list[float]) -> Weights:
    if not np.isfinite(weights).all() or not weights:
        return Weights()
    return Weights(mean=float(np.mean(weights)), sd=float(np.std(weights)))


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
