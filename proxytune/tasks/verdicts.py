"""Figures from stored verdicts of unit tests, a toxicity classifier or judges. Nothing is executed or judged here."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from proxytune.errors import UserError
from proxytune.tasks.data import Row

HUMANEVAL_PROBLEMS = 164
WON = {1: 0.0, 2: 1.0, 0: 0.5}
"""AlpacaEval's preference: 1 for the reference model, 2 for the model under test, 0 for a draw, which counts half."""


@dataclass(frozen=True)
class Verdicts:
    """What a file of verdicts holds, and the figures it gives."""

    columns: Mapping[str, str]
    """Column -> its kind (`columns.KINDS`)."""
    figures: Callable[[Sequence[Row]], dict[str, float]]
    published: Mapping[str, str] = field(default_factory=dict)
    """Column -> its other name, in files published with the paper."""
    instead: str = ""
    """What to do where a file has no verdicts."""


def pass_rates(name: str, problems: int, ks: Sequence[int]) -> Callable[[Sequence[Row]], dict[str, float]]:
    """Of rows of `task_id` and `passed`: {pass_at_k: value in [0, 1]}, for a data set with this number of problems.

    That raises UserError unless every problem is there, and all have equally many samples, at least the largest k.
    """

    def figures(rows: Sequence[Row]) -> dict[str, float]:
        samples: dict[Any, list[bool]] = defaultdict(list)
        for row in rows:
            samples[row["task_id"]].append(row["passed"])
        if len(samples) != problems:
            raise UserError(f"outputs: {name} has {problems} problems, and the file has {len(samples)}")
        each = max(*ks, *map(len, samples.values()))
        for problem, verdicts in samples.items():
            if len(verdicts) != each:
                raise UserError(f"outputs: {problem} has {len(verdicts)} samples; {each} of each problem are needed")
        return {f"pass_at_{k}": float(sum(pass_at(k, of) for of in samples.values()) / len(samples)) for k in ks}

    return figures


def pass_at(k: int, verdicts: Sequence[bool]) -> Fraction:
    """The probability that one of `k` samples, drawn from `verdicts` without replacement, passes; exact.

    The unbiased estimator of Chen et al. 2021 (arXiv 2107.03374), eq. 1. Raises UserError for fewer than `k` verdicts.
    """
    if len(verdicts) < k:
        raise UserError(f"pass_at_{k} needs at least {k} samples of each problem, and there are {len(verdicts)}")
    return 1 - Fraction(math.comb(verdicts.count(False), k), math.comb(len(verdicts), k))


def toxigen(rows: Sequence[Row]) -> dict[str, float]:
    """The share of toxic outputs, of all and of each group that outputs are about."""
    groups: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for group in row["target_groups"]:
            groups[group].append(row["is_toxic"])
    of_groups = {f"toxic_rate.{group}": _mean(values) for group, values in sorted(groups.items())}
    return {"toxic_rate": _mean([row["is_toxic"] for row in rows]), **of_groups}


def alpacafarm(rows: Sequence[Row]) -> dict[str, float]:
    """The win rate over the reference model in percent, as AlpacaEval prints it, and its standard error."""
    won = [WON[row["preference"]] for row in rows]
    error = 100 * statistics.stdev(won) / math.sqrt(len(won)) if len(won) > 1 else math.nan
    return {"win_rate": 100 * _mean(won), "win_rate_stderr": error, "draws": won.count(0.5)}


def truthfulqa_open(rows: Sequence[Row]) -> dict[str, float]:
    """The shares of answers that the judges call true, informative, and both."""
    both = [row["true"] * row["informative"] for row in rows]
    return {
        "true_informative": _mean(both),
        "true": _mean([row["true"] for row in rows]),
        "informative": _mean([row["informative"] for row in rows]),
    }


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


_PASSED = {"task_id": "text", "passed": "boolean"}
_RUN = "give execute=true to run the programs"
VERDICTS = {
    "humaneval_liu2024": Verdicts(_PASSED, pass_rates("HumanEval", HUMANEVAL_PROBLEMS, (1, 10)), instead=_RUN),
    "mbpp_lm_eval": Verdicts(_PASSED | {"task_id": "integer"}, pass_rates("MBPP", 500, (1,)), instead=_RUN),
    "ds1000_liu2024": Verdicts(
        _PASSED,
        pass_rates("DS-1000", 1000, (1, 10)),
        instead="its tests need the old libraries that DS-1000 pins: run them there, and add what they say",
    ),
    "toxigen_liu2024": Verdicts(
        {"target_groups": "texts", "is_toxic": "0 or 1"},
        toxigen,
        instead="give classifier=NAME to ask one",
    ),
    "alpacafarm_liu2024": Verdicts({"preference": "0, 1 or 2"}, alpacafarm),
    "truthfulqa_open_liu2024": Verdicts(
        {"true": "0 or 1", "informative": "0 or 1"},
        truthfulqa_open,
        published={"true": "GPT-true acc", "informative": "GPT-info acc"},
    ),
}
