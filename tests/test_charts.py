"""The figures' data against the records they come from, read by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from proxytune.cli import main
from proxytune.reporting.charts import charts, drawn
from proxytune.reporting.frames import frames
from proxytune.reporting.papers import paper_tables
from proxytune.reporting.papers.chart import OURS, paper_charts


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


def test_the_sweep_joins_the_base_and_the_static_arms_by_weight(run: Path):
    rows = data(charts([frames(run)])["alpha_sweep"])
    swept = rows[~rows["level"].astype(bool)].sort_values("alpha")
    assert swept[["alpha", "value"]].to_numpy().tolist() == [[0.0, 10.0], [0.5, 30.0], [1.0, 40.0]]
    assert dict(zip(rows["arm"], rows["value"], strict=True)).items() >= {"dynamic": 45.0, "tuned": 50.0}.items()


def test_a_sweep_of_runs_is_one_line(tmp_path: Path, record: dict[str, Any]):
    folders = []
    for alpha, value in ((0.2, 0.2), (0.6, 0.3), (1.4, 0.5)):
        one = json.loads(json.dumps(record))
        arms = one["tasks"]["gsm"]["arms"]
        one["tasks"]["gsm"]["arms"] = {"base": arms["base"], "proxy": fused(value, 0.5, alpha)}
        folders.append(run_folder(tmp_path / f"alpha={alpha}", one, {}))
    rows = data(charts([frames(folder) for folder in folders])["alpha_sweep"])
    assert rows["series"].unique().tolist() == ["static"]
    assert rows[["alpha", "value"]].to_numpy().tolist() == [[0.0, 10.0], [0.2, 20.0], [0.6, 30.0], [1.4, 50.0]]


def test_runs_that_measured_otherwise_are_lines_of_their_own(tmp_path: Path, record: dict[str, Any]):
    folders = [run_folder(tmp_path / "a", record, {})]
    record["tasks"]["gsm"]["arms"]["half"] = fused(0.35, 0.6, 0.5)
    folders.append(run_folder(tmp_path / "b", record, {}))
    rows = data(charts([frames(folder) for folder in folders])["alpha_sweep"])
    swept = rows[~rows["level"].astype(bool)]
    assert {name: part["value"].tolist() for name, part in swept.groupby("series")} == {
        "static (a)": [10.0, 30.0, 40.0],
        "static (b)": [10.0, 35.0, 40.0],
    }


def test_two_behaviours_are_traded_off_by_lambda(tmp_path: Path, record: dict[str, Any]):
    """Both tasks' values of each λ, in its order, and the base; an arm of one expert is no point of it."""

    def both(share: float, value: float) -> dict[str, Any]:
        weights = {"rule": {"id": "static", "parameters": {"weights": [2 * share, 2 - 2 * share]}}}
        return arm(value, ["base", "expert:helpful", "expert:harmless", "antiexpert"], **weights)

    gsm, values = record["tasks"]["gsm"], {0.5: (0.3, 0.25), 0.0: (0.1, 0.4), 1.0: (0.4, 0.2)}
    gsm["arms"] |= {f"at_{share}": both(share, helpful) for share, (helpful, _) in values.items()}
    other = {f"at_{share}": both(share, harmless) for share, (_, harmless) in values.items()}
    other |= {"base": arm(0.6, ["base"]), "proxy": gsm["arms"]["proxy"]}
    record["tasks"] = {"gsm": gsm, "toxic": gsm | {"metric": "rate", "higher_is_better": False, "arms": other}}
    made = charts([frames(run_folder(tmp_path / "run", record, {}))])["frontier"]
    rows = data(made)
    assert rows[["label", "value_x", "value_y"]].to_numpy().tolist() == [
        ["λ = 0", 10.0, 40.0],
        ["λ = 0.5", 30.0, 25.0],
        ["λ = 1", 40.0, 20.0],
        ["base", 10.0, 60.0],
    ]
    assert set(rows["panel"]) == {"→ gsm: acc, %   ↑ toxic: rate, %, lower is better"}
    assert drawn(made, "svg").startswith(b"<svg")


def test_static_and_dynamic_arms_stand_beside_base_and_tuned(run: Path):
    rows = data(charts([frames(run)])["static_dynamic"])
    assert set(zip(rows["arm"], rows["role"], strict=True)) == {
        *{("base", "base"), ("tuned", "tuned"), ("half", "fused, static"), ("proxy", "fused, static")},
        ("dynamic", "fused, dynamic"),
    }


def test_weights_are_averaged_at_each_step_of_the_answers(run: Path):
    rows = data(charts([frames(run)])["alpha_steps"])
    assert set(rows["arm"]) == {"dynamic"}, "a fixed weight is no figure"
    found = rows.sort_values("step")[["step", "mean", "low", "high", "n"]].to_numpy().tolist()
    # Items have (0, 1, 2) and (1, 1): two answers reach steps 1 and 2, one step 3.
    assert found == [[1, 0.5, 0.25, 0.75, 2], [2, 1.0, 1.0, 1.0, 2], [3, 2.0, 2.0, 2.0, 1]]


def test_the_distribution_of_weights_has_every_token(run: Path):
    rows = data(charts([frames(run)])["alpha_distribution"])
    shares = {(round(low, 6), round(high, 6)): share for low, high, share in rows[["low", "high", "share"]].to_numpy()}
    assert shares == {(0.0, 0.1): pytest.approx(20), (1.0, 1.1): pytest.approx(60), (1.9, 2.0): pytest.approx(20)}


@pytest.fixture
def traced(run: Path) -> Path:
    table = {
        "task": "gsm",
        "arm": ["proxy"] * 5 + ["base"],
        "item": [0, 0, 0, 1, 1, 0],
        "step": [0, 1, 2, 0, 1, 0],
        "p_fused": [0.9, 0.8, 0.5, 0.7, 0.6, 0.5],
        "p_base": [0.4, 0.9, 0.5, 0.1, 0.6, None],
        "differs": [True, False, False, True, False, None],
        "top_base": [[{"token": 1, "text": "a", "p": 0.5}]] * 6,
    }
    (run / "traces").mkdir()
    pd.DataFrame(table).astype({"task": "category", "arm": "category"}).to_parquet(run / "traces" / "gsm.parquet")
    return run


def test_changed_tokens_are_counted_with_an_error_over_items(traced: Path):
    (row,) = data(charts([frames(traced)])["changed_tokens"]).to_dict("records")
    # 2 of 5 tokens: item 0 has 1 of 3, item 1 has 1 of 2; residuals 1 - 0.4 * 3 = -0.2 and 1 - 0.4 * 2 = 0.2.
    error = (2 / 1 * (0.2**2 + 0.2**2)) ** 0.5 / 5
    assert (row["arm"], row["share"], row["n"]) == ("proxy", pytest.approx(40), 5)
    assert (row["low"], row["high"]) == (pytest.approx(40 - 196 * error), pytest.approx(40 + 196 * error))


def test_the_shift_of_probability_is_averaged_by_position(traced: Path):
    rows = data(charts([frames(traced)])["delta_position"]).sort_values("step")
    assert rows["mean"].tolist() == pytest.approx([(0.5 + 0.6) / 2, (-0.1 + 0) / 2, 0.0])
    assert set(rows["arm"]) == {"proxy"}, "a model alone has no base"


def test_figures_of_tokens_tell_several_runs_apart(traced: Path, tmp_path: Path):
    other = tmp_path / "other"
    shutil.copytree(traced, other)
    made = charts([frames(traced), frames(other)])
    for name in ("changed_tokens", "delta_position"):
        assert set(data(made[name])["arm"]) == {"proxy (run)", "proxy (other)"}
    assert set(data(made["alpha_steps"])["arm"]) == {"dynamic (run)", "dynamic (other)"}


def test_the_cost_is_that_of_all_arms_together(run: Path, record: dict[str, Any]):
    for arms in (task["arms"] for task in record["tasks"].values()):
        arms["base"]["tokens"] = 30
    record["provenance"]["timings"] |= {
        "answers": {"gsm": {"computed": 8, "from_store": 0}, "text": {"computed": 1, "from_store": 1}},
        "peak_memory": {"gsm": 2**31},
    }
    (run / "results.json").write_text(json.dumps(record))
    chart = charts([frames(run)])["cost"]
    cells = {(row["task"], row["panel"]): row["value"] for row in data(chart).to_dict("records")}
    assert cells[("gsm", "tokens per second")] == 15.0
    assert cells[("gsm", "peak memory, GiB")] == 2.0
    assert ("text", "tokens per second") not in cells, "some of its answers came from the store"
    assert "do not cover all the work: text." in json.dumps(chart.to_dict())


def test_the_cost_of_each_arm_is_its_own(run: Path, record: dict[str, Any]):
    assert "arm_cost" not in charts([frames(run)]), "older runs have none"
    costs = {"base": {"seconds": 2.0, "tokens": 30, "weights": 2**30}, "proxy": {"seconds": 6.0, "tokens": 30}}
    costs["proxy"]["weights"] = 3 * 2**30
    empty = {"base": {"seconds": 0.0, "tokens": 0, "weights": 2**31}}
    record["provenance"]["timings"]["costs"] = {"gsm": {"arms": costs}, "text": {"arms": empty}}
    (run / "results.json").write_text(json.dumps(record))
    chart = charts([frames(run)])["arm_cost"]
    cells = {(row["arm"], row["panel"]): row["value"] for row in data(chart).to_dict("records")}
    assert cells == {
        ("base", "gsm: tokens per second"): 15.0,
        ("proxy", "gsm: tokens per second"): 5.0,
        ("base", "weights of its models, GiB"): 2.0,
        ("proxy", "weights of its models, GiB"): 3.0,
    }


def test_two_runs_are_told_apart(tmp_path: Path, record: dict[str, Any]):
    folders = [run_folder(tmp_path / where / "run", record, {}) for where in ("a", "b")]
    rows = data(charts([frames(folder) for folder in folders])["scores"])
    assert rows["run"].unique().tolist() == ["run", "run (2)"]


def test_the_command_writes_the_figures_of_runs(traced: Path, tmp_path: Path, capsys):
    assert main(["figures", str(traced), "format=png", "columns=1"]) == 0
    names = {path.name for path in (traced / "figures").iterdir()}
    assert names == {f"{name}.png" for name in charts([frames(traced)])}
    assert {line.rpartition("/")[2] for line in capsys.readouterr().out.split()} == names
    assert main(["figures", str(traced), f"output={tmp_path / 'svg'}"]) == 0
    assert (tmp_path / "svg" / "scores.svg").read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no run is given"),
        (["RUN", "format=gif"], "format=gif is not allowed: it is svg, png or pdf"),
        (["RUN", "columns=0"], "columns=0 is not allowed"),
        (["RUN", "paper=liu"], "liu2024"),
        (["RUN", "paper=liu2024"], "names no experiment"),
        (["nowhere"], "nowhere is not a run"),
    ],
)
def test_the_users_mistakes_are_one_line(arguments: list[str], message: str, run: Path, capsys):
    assert main(["figures", *(str(run) if one == "RUN" else one for one in arguments)]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_papers_points_stand_beside_ours(run: Path, record: dict[str, Any], capsys):
    record["tasks"] = {"gsm8k_liu2024": record["tasks"]["gsm"]}
    record["provenance"]["config"] = {"experiment": "liu2024_gsm8k_13b"}
    (run / "results.json").write_text(json.dumps(record))
    made = paper_charts(paper_tables("liu2024", [run]))
    rows = data(made["liu2024_task_tuning"]).set_index(["label", "source"])["value"]
    assert rows[("13B proxy-tuned", OURS)] == pytest.approx(40.0)
    assert rows[("13B proxy-tuned", "Liu et al. 2024 (arXiv 2401.08565)")] == 43.9
