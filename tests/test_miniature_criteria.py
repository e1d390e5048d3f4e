"""scripts/miniature_criteria.py: verdicts worked out by hand, and the columns of a table of runs."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from miniature_criteria import CRITERIA, Run, above, differ, table


def right(count: int) -> np.ndarray:
    """Scores of 100 items, the first `count` of them right."""
    return np.where(np.arange(100) < count, 100.0, 0.0)


SOLVED = {"base": 20, "expert": 10, "static_0_5": 40, "proxy": 60, "static_1_5": 80, "dynamic": 70, "tuned": 90}
FLAT = {"base": 4, "expert": 55, "static_0_5": 60, "proxy": 60, "static_1_5": 60, "dynamic": 60, "tuned": 60}


def run(tasks: list[dict[str, int]], unseen: dict[str, int] | None = None) -> Run:
    named = {f"miniature_{i}": arms for i, arms in enumerate(tasks)} | ({"miniature_new": unseen} if unseen else {})
    return Run(7, {task: {arm: right(n) for arm, n in arms.items()} for task, arms in named.items()})


def test_every_criterion_can_be_met() -> None:
    verdicts = {title: check(run([SOLVED] * 4, {"base": 50, "all_dynamic": 20})) for title, check in CRITERIA.items()}
    assert all(verdict.startswith("met") for verdict in verdicts.values()), verdicts
    assert list(verdicts.values())[:2] == ["met (20 to 20)", "met (70 to 70)"]
    assert list(verdicts.values())[-1] == "met (base 50; all_dynamic 20)"


def test_every_criterion_can_fail() -> None:
    flat = {**FLAT, "tuned": 100}
    verdicts = {title: check(run([FLAT, flat], {"base": 50, "all_dynamic": 50})) for title, check in CRITERIA.items()}
    assert all(verdict.startswith("**not met**") for title, verdict in verdicts.items() if "tuned − base" not in title)
    assert verdicts["no arm at 0 or 100 on these tasks"] == "**not met** (1 100: tuned)"


@pytest.mark.parametrize(("a", "b", "apart"), [(60, 57, False), (60, 56, True), (60, 60, False)])
def test_two_standard_errors_decide(a: int, b: int, apart: bool) -> None:
    """If one arm solves k of 100 items more, the paired error is sqrt(k (100 - k) / 99): 1.71 and 1.97 for 3 and 4."""
    assert above(right(a), right(b)) == differ(right(b), right(a)) == apart
    assert not above(right(b), right(a))


def test_the_table_has_a_column_per_run() -> None:
    lines = table([run([SOLVED]), run([FLAT])]).splitlines()
    assert lines[0] == "| criterion | seed 7 | seed 7 |"
    assert {line.count("|") for line in lines} == {4}
    assert lines[-1].endswith("| no such task in this run | no such task in this run |")
