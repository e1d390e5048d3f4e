"""The figures' data against the records they come from, read by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from proxytune.reporting.charts import charts
from proxytune.reporting.drawing import drawn
from proxytune.reporting.frames import frames


def arm(value: float | None, roles: list[str], gap: float | None = None, **fields: Any) -> dict[str, Any]:
    known = value is not None
    return {
        "value": value,
        "stderr": 0.05 if known else None,
        "interval": [value - 0.1, value + 0.1] if known else None,
        "n": 4,
        "gap_closed": gap,
        "gap_closed_ci": None if gap is None else [gap - 0.2, gap + 0.2],
        "gap_closed_ci_method": None if gap is None else "exact" if gap in (0, 1) else "bootstrap",
        "undefined": {} if known else {"value": "no valid item"},
        "roles": roles,
        **fields,
    }


def fused(value: float | None, gap: float | None, weights: float | None = None, sd: float = 0.0) -> dict[str, Any]:
    parameters = {"low": 0.0} if weights is None else {"weights": weights}
    rule = {"id": "match_kl" if weights is None else "static", "parameters": parameters}
    mean = {"mean": 1.0 if weights is None else weights, "sd": sd}
    return arm(value, ["base", "expert:math", "antiexpert"], gap, rule=rule, weights={"math": mean})


@pytest.fixture
def record() -> dict[str, Any]:
    arms = {
        "dynamic": fused(0.45, 0.875, sd=0.3),
        "proxy": fused(0.4, 0.75, 1.0),
        "half": fused(0.3, 0.5, 0.5),
        "broken": fused(None, None, 2.0),
        "tuned": arm(0.5, ["tuned:math"], 1.0),
        "expert": arm(0.2, ["expert:math"], 0.25),
        "base": arm(0.1, ["base"], 0.0),
    }
    task = {"metric": "acc", "higher_is_better": True, "n": 4, "arms": arms}
    text = {"base": arm(9.0, ["base"], None, interval=None, stderr=0.5), "tuned": arm(5.0, ["tuned:math"], None)}
    return {
        "tasks": {
            "gsm": task,
            "text": {"metric": "perplexity", "higher_is_better": False, "n": 4, "arms": text},
        },
        "provenance": {"timings": {"task_seconds": {"gsm": 2.0, "text": 1.0}, "load_seconds": {"gsm": 0.5}}},
    }


def run_folder(folder: Path, record: dict[str, Any], weights: dict[str, list[list[list[float]]]]) -> Path:
    """A run with `weights[arm][item]`: a list per request, of the one expert's weights at each token."""
    (folder / "items").mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(record))
    rows = [
        {
            "doc_id": item,
            "choices": None,
            "arms": {
                name: {"acc": float(item % 2), "weights": {"math": chosen[item]}} for name, chosen in weights.items()
            }
            | {"base": {"acc": 0.0, "weights": None}},
        }
        for item in range(2)
    ]
    (folder / "items" / "gsm.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture
def run(tmp_path: Path, record: dict[str, Any]) -> Path:
    weights = {"dynamic": [[[0.0, 1.0, 2.0]], [[1.0, 1.0]]], "proxy": [[[1.0]], [[1.0, 1.0]]]}
    return run_folder(tmp_path / "run", record, weights)


def data(chart: Any) -> pd.DataFrame:
    """The rows that a figure draws, as a reader of its declaration finds them."""
    declared = chart.to_dict()
    name = (declared.get("spec") or declared).get("data", declared.get("data"))["name"]
    return pd.DataFrame(declared["datasets"][name])


def test_frames_hold_the_record(run: Path):
    made = frames(run)
    gsm = made.results[made.results["task"] == "gsm"].set_index("arm")
    assert gsm.loc["proxy", ["value", "low", "high", "gap_closed", "gap_low", "gap_high", "alpha"]].tolist() == [
        *(0.4, 0.4 - 0.1, 0.4 + 0.1, 0.75, 0.75 - 0.2, 0.75 + 0.2, 1.0)
    ]
    assert gsm["kind"].to_dict() == {
        **dict.fromkeys(("dynamic", "proxy", "half", "broken"), "fused"),
        **{"tuned": "tuned", "expert": "expert", "base": "base"},
    }
    base = made.results[made.results["task"] == "text"].set_index("arm").loc["base"]
    assert (base["low"], base["high"]) == (9 - 1.96 * 0.5, 9 + 1.96 * 0.5)
    assert made.costs.set_index("task")["seconds"].to_dict() == {"gsm": 2.0, "text": 1.0}
    assert made.items.groupby("arm")["score"].mean().to_dict() == {"base": 0.0, "dynamic": 0.5, "proxy": 0.5}
    assert made.weights.query("arm == 'dynamic' and item == 0")["alpha"].tolist() == [0.0, 1.0, 2.0]
    assert made.traces.empty


def test_scores_are_the_records_in_percent(run: Path):
    rows = data(charts([frames(run)])["scores"]).set_index(["task", "arm"])
    assert rows.loc[("gsm", "proxy"), ["value", "low", "high"]].tolist() == pytest.approx([40, 30, 50])
    assert rows.loc[("text", "base"), "value"] == 9.0, "a perplexity is no percentage"
    assert ("gsm", "broken") not in rows.index


def test_what_is_undefined_is_named(run: Path):
    declared = json.dumps(charts([frames(run)])["scores"].to_dict())
    assert "Undefined and left out: broken on gsm." in declared


def test_gap_closed_leaves_out_what_is_so_by_definition(run: Path):
    rows = data(charts([frames(run)])["gap_closed"]).set_index("arm")
    assert set(rows.index) == {"dynamic", "proxy", "half", "expert"}
    assert rows.loc["dynamic", ["gap_closed", "gap_low", "gap_high"]].tolist() == pytest.approx([87.5, 67.5, 107.5])


def test_arms_stand_in_their_order(run: Path):
    declared = charts([frames(run)])["scores"].to_dict()
    sort = declared["spec"]["layer"][-1]["encoding"]["y"]["sort"]
    assert sort == ["base", "expert", "tuned", "half", "proxy", "dynamic"]


@pytest.mark.parametrize(("format", "start"), [("svg", b"<svg"), ("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_every_figure_is_drawn(run: Path, format: str, start: bytes):
    for name, chart in charts([frames(run)]).items():
        assert drawn(chart, format).startswith(start), name
