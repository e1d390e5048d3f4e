"""The token analysis, against traces made by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from proxytune.cli import main
from proxytune.errors import UserError
from proxytune.reporting.analysis import PAPER, analyze
from proxytune.reporting.frames import Frames
from proxytune.reporting.papers.chart import shift_charts

EMPTY = pd.DataFrame()


def traced(answers: dict[int, list[tuple[str, float, bool]]], arm: str = "proxy", alpha: float = 1.0) -> pd.DataFrame:
    """A row per (text, delta, differs) of each item's answer."""
    rows: list[dict[str, Any]] = [
        {
            "task": "gsm8k_liu2024",
            "arm": arm,
            "item": item,
            "request": 0,
            "step": step,
            "token": sum(map(ord, text)),
            "text": text,
            "p_fused": 0.5 + delta,
            "p_base": 0.5,
            "differs": differs,
            "alpha_math": alpha,
        }
        for item, answer in answers.items()
        for step, (text, delta, differs) in enumerate(answer)
    ]
    return pd.DataFrame(rows)


def run(traces: pd.DataFrame) -> Frames:
    return Frames("run", EMPTY, EMPTY, EMPTY, traces, EMPTY, EMPTY)


def plain(text: str, delta: float = 0.0) -> list[tuple[str, float, bool]]:
    """A token for each character."""
    return [(character, delta, False) for character in text]


def test_shares_and_shifts_are_means_over_tokens_with_errors_over_items():
    answers = {0: [("a", 0.4, True), ("b", 0.0, False), ("c", 0.2, False)], 1: [("a", -0.2, True)]}
    row = analyze([run(traced(answers))])["shift"].iloc[0]
    assert (row["tokens"], row["changed"], row["delta"]) == (4, 0.5, pytest.approx(0.1))
    # Sums over the items of what is above or below the mean: ±0.5 of changed, ±0.3 of delta; n / (n - 1) = 2.
    assert row["changed_stderr"] == pytest.approx(math.sqrt(2 * 2 * 0.5**2) / 4)
    assert row["delta_stderr"] == pytest.approx(math.sqrt(2 * 2 * 0.3**2) / 4)


def test_a_single_item_has_no_error():
    assert math.isnan(analyze([run(traced({0: plain("ab")}))])["shift"]["delta_stderr"].iloc[0])


@pytest.mark.parametrize(
    ("pieces", "sides"),
    [
        (["So", " 3", " +", " 4", " =", " 7", "."], [None, "left", "left", "left", None, "right", None]),
        (["48", "/2", " = ", "$24", ".50", "."], ["left", "left", None, "right", "right", None]),
        (["2*", "3=", "1", ",200", " and", " x", "=", "5"], ["left", "left", "right", "right", None, None, None, None]),
        (["(1", "+2)", "*3", "=", "9"], ["left", "left", "left", None, "right"]),
        (["the", " answer", " =", " 9"], [None] * 4),
        (["in", " 1999", " =", " 9"], [None] * 4),
        (["3 + 4 ="], ["left"]),
        (["7 - 2", " = x"], [None, None]),
        (["1+1=2", " 1+1=2"], ["left", "left"]),
    ],
)
def test_sides_of_equations(pieces: list[str], sides: list[str | None]):
    if pieces == ["3 + 4 ="]:
        pieces, sides = [*pieces, "7"], [*sides, "right"]
    shifts = {"left": 0.25, "right": 0.125, None: 0.0}
    answer = [(piece, shifts[side], False) for piece, side in zip(pieces, sides, strict=True)]
    found = analyze([run(traced({0: answer}))])["equations"].set_index("side")
    assert dict(found["tokens"]) == {side: sides.count(side) for side in ("left", "right") if side in sides}
    assert all(found["delta"][side] == pytest.approx(shifts[side]) for side in found.index)


def test_positions_and_weights():
    answer = plain("a", 0.3) + plain("bcde", 0.1) + plain("f" * 15, 0.05) + plain("gg", -0.2)
    made = analyze([run(traced({0: answer, 1: plain("a", 0.1)}, alpha=0.7))])
    deltas = made["positions"].set_index("position")
    assert dict(deltas["tokens"]) == {"first": 2, "2 to 5": 4, "6 to 20": 15, "later": 2}
    assert list(deltas["delta"]) == pytest.approx([0.2, 0.1, 0.05, -0.2])
    assert set(made["weights"]["expert"]) == {"math"}
    assert list(made["weights"]["alpha"]) == pytest.approx([0.7] * 4)


def test_the_share_of_changed_tokens_by_position():
    answers = {i: [("a", 0.1, i == 0), *((c, 0.1, c in "bc") for c in "bcde")] for i in range(4)}
    changed = analyze([run(traced(answers))])["changed"].set_index("position")
    assert dict(changed["changed"]) == {"first": 0.25, "2 to 5": 0.5}
    # One item of four differs from the mean by 3/4, three by 1/4; n / (n - 1) = 4/3.
    assert changed["stderr"]["first"] == pytest.approx(math.sqrt(4 / 3 * (0.75**2 + 3 * 0.25**2)) / 4)


def test_the_most_influenced_tokens_are_chosen_often_enough():
    answer = plain("aaa", 0.1) + plain("bb", 0.4) + plain("ccc", 0.3) + plain("ddd", -0.1)
    tokens = analyze([run(traced({0: answer}))])["tokens"]
    assert list(tokens["text"]) == ["c", "a", "d"]


def test_arms_are_apart_and_models_alone_left_out():
    alone = traced({0: plain("ab")}, arm="base").assign(p_base=float("nan"))
    frames = run(pd.concat([alone, traced({0: plain("ab", 0.2)}), traced({0: plain("ab", 0.1)}, arm="mild")]))
    assert list(analyze([frames])["shift"]["arm"]) == ["proxy", "mild"]
    with pytest.raises(UserError, match="trace=summary"):
        analyze([run(alone)])
    with pytest.raises(UserError, match="no fused arm of these runs was traced"):
        analyze([run(EMPTY)])


def test_the_command_prints_ours_and_the_papers(tmp_path: Path, monkeypatch, capsys):
    answer = plain("3+4=7", 0.25)
    monkeypatch.setattr("proxytune.reporting.frames.frames", lambda path: run(traced({0: answer, 1: answer})))
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["analyze", str(tmp_path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["gsm8k_liu2024", "proxy", "10", "0.0", "±", "0.0", "0.250", "±", "0.000"] in lines
    assert ["gsm8k_liu2024", "Liu", "et", "al.", "2024", "13.5"] in lines
    assert ["gsm8k_liu2024", "proxy", "0.0", "±", "0.0", "0.0", "±", "0.0"] in lines
    assert ["gsm8k_liu2024", "Liu", "et", "al.", "2024", "0.131", "0.056"] in lines


def test_the_papers_points_stand_beside_ours_in_a_figure():
    answer = plain("3+4=7", 0.25)
    chart = shift_charts([run(traced({0: answer, 1: answer}))])["liu2024_changed_tokens"]
    [rows] = chart.to_dict()["datasets"].values()
    points = {(row["panel"].partition(": ")[2], row["label"]): row["value"] for row in rows}
    assert points == {
        ("tokens changed, %", "proxy"): pytest.approx(0.0),
        ("tokens changed, %", PAPER): pytest.approx(13.5),
        ("Δ on the left of equations", "proxy"): pytest.approx(0.25),
        ("Δ on the left of equations", PAPER): 0.131,
        ("Δ on the right of equations", "proxy"): pytest.approx(0.25),
        ("Δ on the right of equations", PAPER): 0.056,
    }
    assert shift_charts([run(EMPTY)]) == {}
    other = traced({0: answer}).assign(task="miniature_gsm")
    assert shift_charts([run(other)]) == {}, "not a task of the paper"


@pytest.mark.parametrize(("arguments", "said"), [([], "no run is given"), (["nowhere"], "nowhere does not exist")])
def test_mistakes_are_one_line(arguments: list[str], said: str, capsys):
    assert main(["analyze", *arguments]) == 1
    assert said in capsys.readouterr().err
