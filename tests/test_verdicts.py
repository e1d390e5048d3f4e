"""Figures from stored verdicts, against counting by hand and by enumeration."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from proxytune.cli import main
from proxytune.errors import UserError
from proxytune.tasks.outputs import score_outputs
from proxytune.tasks.verdicts import HUMANEVAL_PROBLEMS, pass_at


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "verdicts.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def humaneval(passed: int, samples: int = 10) -> list[dict[str, Any]]:
    """Problem i: the first `passed` samples pass where i is even, none where it is odd."""
    return [
        {"task_id": f"HumanEval/{i}", "completion": "x", "passed": i % 2 == 0 and j < passed}
        for i in range(HUMANEVAL_PROBLEMS)
        for j in range(samples)
    ]


@pytest.mark.parametrize("passed", range(7))
@pytest.mark.parametrize("k", range(1, 7))
def test_pass_at_k_is_the_share_of_all_draws_in_which_one_passes(k: int, passed: int) -> None:
    verdicts = [True] * passed + [False] * (6 - passed)
    draws = list(itertools.combinations(verdicts, k))
    assert pass_at(k, verdicts) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_humaneval_averages_over_problems(tmp_path: Path) -> None:
    scores = score_outputs("humaneval", "liu2024", written(tmp_path, humaneval(5, samples=20)))
    assert scores == {
        "task": "humaneval_liu2024",
        "n": 20 * HUMANEVAL_PROBLEMS,
        "pass_at_1": pytest.approx(1 / 8),
        "pass_at_10": pytest.approx((1 - 3003 / 184756) / 2),  # C(15, 10) and C(20, 10)
    }


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (humaneval(1)[:-1], "outputs: HumanEval/163 has 9 samples; 10 of each problem are needed"),
        (humaneval(1, samples=9), "outputs: HumanEval/0 has 9 samples; 10 of each problem are needed"),
        (humaneval(1)[:-10], "outputs: HumanEval has 164 problems, and the file has 163"),
        ([{"task_id": "HumanEval/0", "passed": 1}], r"line 1: passed = 1 is not allowed"),
        ([{"task_id": "HumanEval/0"}], r"line 1 has no 'passed'"),
    ],
)
def test_missing_samples_and_verdicts_are_one_line(rows: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        score_outputs("humaneval", "liu2024", written(tmp_path, rows))


def test_toxigen_by_group_and_overall(tmp_path: Path) -> None:
    verdicts = [("women", 1), ("women", 0), ("asian", 0), ("women", 0)]
    rows = [{"target_groups": [group], "is_toxic": toxic} for group, toxic in verdicts]
    assert score_outputs("toxigen", "liu2024", written(tmp_path, rows)) == {
        "task": "toxigen_liu2024",
        "n": 4,
        "toxic_rate": 0.25,
        "toxic_rate.asian": 0.0,
        "toxic_rate.women": pytest.approx(1 / 3),
    }


def test_a_draw_is_half_a_win(tmp_path: Path) -> None:
    rows = [{"preference": preference} for preference in (2, 2, 0, 1)]
    assert score_outputs("alpacafarm", "liu2024", written(tmp_path, rows)) == {
        "task": "alpacafarm_liu2024",
        "n": 4,
        "win_rate": 62.5,
        "win_rate_stderr": pytest.approx(100 * (11 / 48) ** 0.5 / 2),
        "draws": 1,
    }


def test_true_and_informative_is_both(tmp_path: Path) -> None:
    rows = [{"true": true, "informative": informative} for true, informative in ((1, 1), (1, 0), (0, 1), (1, 1))]
    scores = score_outputs("truthfulqa_open", "liu2024", written(tmp_path, rows))
    assert (scores["true_informative"], scores["true"], scores["informative"]) == (0.5, 0.75, 0.75)


def test_the_command_prints_them_and_names_the_style(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, [{"preference": 2}])
    assert main(["score", "task=alpacafarm", "style=liu2024", f"outputs={path}"]) == 0
    assert "win_rate         100.0" in capsys.readouterr().out
    assert main(["score", "task=alpacafarm", f"outputs={path}"]) != 0
    assert "give style=liu2024" in capsys.readouterr().err
