"""A pilot says whether the shift helps before the run goes on, and its answers are not computed again."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from proxytune.cli import main
from proxytune.record import Estimate
from proxytune.reporting.pilot import pilot_lines
from proxytune.statistics import paired_difference


def record(difference: Estimate, *, higher: bool = True, fraction: bool = True, base: bool = True) -> Any:
    arms = {
        "base": SimpleNamespace(rule=None, differences={}),
        "proxy": SimpleNamespace(rule="static", differences={"base": difference}),
    }
    references = {"base": "base"} if base else {}
    task = SimpleNamespace(
        n=50, arms=arms, references=references, higher_is_better=higher, is_fraction=fraction, metric="x"
    )
    return SimpleNamespace(tasks={"gsm8k": task})


@pytest.mark.parametrize(
    ("value", "stderr", "higher", "said"),
    [
        (0.2, 0.1, True, "helps (gain over the base +20.0, 95 % interval +0.4 to +39.6)"),
        (-0.2, 0.1, True, "harms (gain over the base -20.0, 95 % interval -39.6 to -0.4)"),
        (-0.2, 0.1, False, "helps (gain over the base +20.0, 95 % interval +0.4 to +39.6)"),
        (0.1, 0.1, True, "may help or harm: too few items to tell (gain over the base +10.0,"),
    ],
)
def test_the_interval_decides(value: float, stderr: float, higher: bool, said: str) -> None:
    (line,) = pilot_lines(record(Estimate(value=value, stderr=stderr, stderr_method="sample", n=50), higher=higher))
    assert line.startswith(f"pilot, gsm8k, 50 items: proxy {said}")


def test_the_interval_is_that_of_the_paired_difference() -> None:
    arm, base = np.array([1.0] * 30 + [0.0] * 20), np.array([1.0] * 10 + [0.0] * 40)
    (line,) = pilot_lines(record(paired_difference(arm, base)))
    assert "helps (gain over the base +40.0" in line


def test_what_cannot_be_compared_is_said() -> None:
    (line,) = pilot_lines(record(Estimate(value=None)))
    assert "cannot be compared with the base: fewer than two items" in line
    (line,) = pilot_lines(record(Estimate(value=None), base=False))
    assert line == "pilot, gsm8k: no arm is the plain base, with which the others would be compared"


def test_a_run_with_a_pilot_computes_no_answer_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = ["miniature=tiny", "only=[base,tuned,proxy]", "task.names=[miniature_trivia]", "store=answers.sqlite"]
    assert main(["run", *tiny, "pilot=4", "limit=6", "output=out"]) == 0
    said = capsys.readouterr().out
    assert said.index("pilot, miniature_trivia, 4 items: proxy") < said.index("Results:")
    pilot, whole = (
        json.loads((tmp_path / path).read_text()) for path in ("out/pilot/results.json", "out/results.json")
    )
    task = "miniature_trivia"
    assert (pilot["tasks"][task]["n"], whole["tasks"][task]["n"]) == (4, 6)
    computed = [made["provenance"]["timings"]["answers"][task] for made in (pilot, whole)]
    assert [answers["computed"] for answers in computed] == [12, 6] and computed[1]["from_store"] == 12


@pytest.mark.parametrize(("pilot", "message"), [("8", "pilot=8 is not below limit=8"), ("1", "pilot=1 is not allowed")])
def test_a_pilot_that_is_none_is_refused(pilot: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "miniature=tiny", f"pilot={pilot}", "limit=8"]) != 0
    assert message in capsys.readouterr().err
