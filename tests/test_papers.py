"""The papers' tables: the reference rows give the papers' own summaries, and runs of ours land in the right cells."""

import io
import json
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from invented import FOLDER
from omegaconf import OmegaConf

from proxytune.cli import main as command
from proxytune.errors import UserError
from proxytune.folders import config_dir
from proxytune.reporting.papers import FORMATS, PAPERS, own_table, paper_tables, render
from proxytune.reporting.papers.figures import reference, reference_folder

DOCS = Path(__file__).parents[1] / "docs"
COMMANDS = [
    line
    for page in ("papers", "judges", "safety")
    for line in re.findall(r"^proxytune run .*$", (DOCS / f"{page}.md").read_text(), re.MULTILINE)
]


def figure(table, panel, arm, task, side="reference"):
    rows = table.figures.query("panel == @panel and arm == @arm and task == @task")
    assert len(rows) == 1
    return rows[side].item()


def only(paper, table, runs=()):
    (filled,) = paper_tables(paper, runs, table)
    return filled


@pytest.mark.parametrize(("size", "mean"), [("13B", 0.910543), ("70B", 0.880673)])
def test_liu2024_mean_gap_closed(size, mean):
    """The 91.1 % and 88.1 % of the paper come out of the published figures, ToxiGen (lower is better) among them."""
    table = only("liu2024", "instruction_published")
    assert figure(table, size, "proxy", "gap_closed") / 100 == pytest.approx(mean, abs=5e-7)

    raw = pd.read_csv(reference_folder() / "liu2024_instruction_published.csv")
    arms = raw[raw.panel == size].pivot(index="task", columns="arm", values="value")
    assert len(arms) == 5
    gaps = (arms.proxy - arms.base) / (arms.tuned - arms.base)
    assert gaps.mean() == pytest.approx(mean, abs=5e-7)


@pytest.mark.parametrize(
    ("table", "panel", "tuned", "relative", "gap"),
    [
        ("single_task", "7B", 47.79, 96.4, (46.09 - 29.93) / (47.79 - 29.93)),
        ("single_task", "1.1B", 47.79, 72.9, (34.86 - 29.93) / (47.79 - 29.93)),
        ("multi_task", "7B", 45.68, 86.3, (39.42 - 37.93) / (45.68 - 37.93)),
        ("multi_task", "1.1B", 45.68, 71.3, (32.59 - 37.93) / (45.68 - 37.93)),
    ],
)
def test_fan2024_prints_ratios_not_gaps(table, panel, tuned, relative, gap):
    """The printed 96.4 % is fused / tuned; the gap closed is another number (90.5 %)."""
    filled = only("fan2024", table)
    arm = "dynamic_grid" if table == "single_task" else "all_dynamic_grid"
    assert round(figure(filled, panel, arm, "relative_performance"), 1) == relative
    assert figure(filled, panel, arm, "gap_closed") == pytest.approx(100 * gap)
    assert figure(filled, panel, arm, "avg") / tuned == pytest.approx(relative / 100, abs=5e-4)


def test_rast2025_recovery_rates_are_recomputed_and_one_does_not_follow_from_its_row():
    accuracies = pd.concat([only("rast2025", f"math_{size}").figures for size in ("32b", "14b")])
    value = accuracies[accuracies.reference.notna()].set_index(["label", "task"]).reference
    recovery = only("rast2025", "recovery").figures.set_index(["panel", "arm", "task"])
    followed, recomputed = {}, recovery[recovery.index.get_level_values("arm") == "recomputed"]
    for (panel, _, task), ours in recomputed.reference.dropna().items():
        small, large = panel.split(" → ")
        base, tuned = value[f"{large} base", task], value[f"{large} tuned by reinforcement", task]
        assert ours == pytest.approx(100 * (value[f"{large} + Δ{small}", task] - base) / (tuned - base), abs=0.005)
        followed[panel, task] = abs(ours - recovery.reference[panel, "printed", task]) < 0.6
    assert [cell for cell, follows in followed.items() if not follows] == [("1.5B → 32B", "minerva")]
    assert len(followed) == 4 and "does not follow" in recovery.note["1.5B → 32B", "printed", "minerva"]


def test_fan2024_averages_are_as_printed():
    """Averages follow from their rows (to rounding), but for the two rows whose note says otherwise."""
    for filled in (only("fan2024", "single_task"), only("fan2024", "multi_task")):
        wide = filled.figures.pivot(index=["panel", "arm"], columns="task", values="reference")
        for name, parts in filled.layout.averages.items():
            remarked = filled.figures.query("task == @name and note != ''")
            off = (wide[name] - wide[list(parts)].mean(axis=1)).abs() > 0.011
            assert set(off[off].index) == set(zip(remarked["panel"], remarked["arm"], strict=True))


def test_rounded_table_agrees_with_published_figures_but_for_two_cells():
    """Table 2 rounds the published figures, except 13B TruthfulQA MC and 70B GSM of the proxy-tuned models."""
    merged = only("liu2024", "instruction").figures.merge(
        only("liu2024", "instruction_published").figures, on=["panel", "arm", "task"], suffixes=("", "_full")
    )
    tasks = merged[~merged.task.isin(["gap_closed", "relative_performance"])]
    assert len(tasks) == 30
    off = tasks[(tasks.reference - tasks.reference_full).abs() > 0.0501]
    assert {tuple(row) for row in off[["panel", "task"]].values} == {("13B", "truthfulqa_mc"), ("70B", "gsm8k")}
    assert set(off.arm) == {"proxy"}


def test_every_reference_row_has_source_unit_and_place():
    for paper in PAPERS.values():
        for layout in paper.tables:
            frame = reference(paper, layout)
            assert frame["source"].str.startswith(paper.citation).all()
            assert not frame.duplicated(["panel", "arm", "task"]).any()
            assert set(zip(frame["panel"], frame["arm"], strict=True)) == set(layout.rows)
            assert set(frame["task"]) <= set(layout.tasks)
    for path in reference_folder().glob("*.csv"):
        frame = pd.read_csv(path)
        assert frame[["value", "unit", "source"]].notna().all(axis=None), path
        assert path.name.split("_")[0] in PAPERS


def test_published_outputs_agree_with_reference(shared_published):
    """The reference rows of the 70B models are the means of the published per-item outcomes."""
    table = only("liu2024", "task_tuning_published")
    for arm, file in {"proxy": "dexperts-gsm-70B", "tuned": "llama2-gsm-70B"}.items():
        lines = (shared_published / f"gsm/{file}.jsonl").read_text(encoding="utf-8").splitlines()
        items = [json.loads(line) for line in lines]
        right = sum(item["prediction"].strip(". ") == item["answer"] for item in items)
        assert 100 * right / len(items) == pytest.approx(figure(table, "70B", arm, "gsm8k"), abs=0.2)


@pytest.fixture
def shared_published():
    folder = FOLDER / "published" / "liu2024"
    if not folder.is_dir():
        pytest.skip(f"no published outputs in {FOLDER} ($PROXYTUNE_TEST_DATA)")
    return folder


def settings_of(experiment, *overrides):
    """The configuration that a run of the experiment records."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose("run", [f"experiment={experiment}", "output=here", *overrides])
    return {**OmegaConf.to_container(config, resolve=True), "experiment": experiment}


def record(experiment, tasks, **arms):
    entry = {
        "metric": "acc",
        "higher_is_better": True,
        "n": 4,
        "arms": {a: {"value": v, "stderr": 0.01} for a, v in arms.items()},
    }
    return {"provenance": {"config": {"experiment": experiment}}, "tasks": dict.fromkeys(tasks, entry)}


@pytest.fixture
def run(tmp_path):
    def write(experiment, tasks, config=None, roles=None, **arms):
        path = tmp_path / f"{experiment}-{len(list(tmp_path.iterdir()))}" / "results.json"
        path.parent.mkdir()
        made = record(experiment, tasks, **arms)
        made["provenance"]["config"] |= config or {}
        for entry in made["tasks"].values():
            for arm, arm_roles in (roles or {}).items():
                entry["arms"][arm]["roles"] = arm_roles
        path.write_text(json.dumps(made))
        return path

    return write


def test_our_runs_fill_their_panel(run):
    """Base, expert and tuned are shared cells; the dynamic arm fills the panel of its experiment; averages follow."""
    layout = PAPERS["fan2024"].tables[0]
    path = run("fan2024_single_7b", layout.runs.values(), base=0.2, tuned=0.6, expert=0.3, dynamic_grid=0.5, joint=0.4)
    table = only("fan2024", "single_task", [path.parent])
    assert figure(table, "13B", "base", "mmlu", "ours") == pytest.approx(20)
    assert figure(table, "7B", "dynamic_grid", "avg", "ours") == pytest.approx(50)
    assert figure(table, "7B", "dynamic_grid", "gap_closed", "ours") == pytest.approx(75)
    assert figure(table, "7B", "dynamic_grid", "relative_performance", "ours") == pytest.approx(100 * 5 / 6)
    assert figure(table, "7B", "joint", "gsm8k", "ours") == pytest.approx(40)
    assert pd.isna(figure(table, "1.1B", "dynamic_grid", "avg", "ours"))
    assert table.figures["label"].iloc[-1] == "7B joint"


def test_partial_runs_say_what_the_summary_covers(run):
    path = run("liu2024_instruction_gsm8k_13b", ["gsm8k_liu2024"], base=0.0, proxy=0.5, tuned=1.0)
    table = only("liu2024", "instruction", [path])
    assert figure(table, "13B", "proxy", "gap_closed", "ours") == pytest.approx(50)
    assert "Ours: the summaries are over gsm8k only." in table.notes
    assert pd.isna(figure(table, "70B", "proxy", "gsm8k", "ours"))


def test_undefined_gap_is_not_a_number(run):
    path = run("liu2024_instruction_gsm8k_13b", ["gsm8k_liu2024"], base=0.5, proxy=0.7, tuned=0.5)
    table = only("liu2024", "instruction", [path])
    assert pd.isna(figure(table, "13B", "proxy", "gap_closed", "ours"))
    assert figure(table, "13B", "proxy", "relative_performance", "ours") == pytest.approx(140)


def test_first_of_two_runs_is_shown_and_said(run):
    first = run("liu2024_alpha_sweep_gsm8k", ["gsm8k_liu2024"], base=0.1)
    second = run("liu2024_alpha_sweep_gsm8k", ["gsm8k_liu2024"], base=0.2)
    table = only("liu2024", "alpha_sweep", [first, second])
    assert figure(table, "13B", "base", "gsm8k", "ours") == pytest.approx(10)
    assert any("first run given" in note for note in table.notes)


ROLES = {
    "base": ["base"],
    "expert": ["expert:triviaqa"],
    "tuned": ["tuned:triviaqa"],
    "proxy": ["base", "expert:triviaqa", "antiexpert"],
}
EXPERIMENT = "liu2024_triviaqa_13b"
MARKED = {
    ("limit=4",): dict.fromkeys(ROLES, "limit=4, not null"),
    ("num_fewshot=0", "seed=1"): dict.fromkeys(ROLES, "num_fewshot=0, not null; seed=1, not 0"),
    ("task.style=fan2024",): dict.fromkeys(ROLES, "task.style=fan2024, not liu2024"),
    ("arms.proxy.rule.weights=0.5",): {"proxy": "arms.proxy.rule.weights=0.5, not 1.0"},
    ("models.antiexpert.path=small",): {"proxy": "models.antiexpert.path=small, not meta-llama/Llama-2-7b-hf"},
    ("models.base.dtype=float32", "models.base.device_map=cpu"): dict.fromkeys(
        ("base", "proxy"), "models.base.dtype=float32, not auto"
    ),
    ("models.experts.triviaqa.path=/mine/chat",): dict.fromkeys(
        ("expert", "proxy"),
        "models.experts.triviaqa.path=/mine/chat, not ${oc.env:PROXYTUNE_TRAINED,./trained}/liu2024/llama2-7b/triviaqa",
    ),
    ("engine.batch_size=2", "models.tuned.triviaqa.path=/mine/liu2024/llama2-13b/triviaqa", "only=[base,proxy]"): {},
}


@pytest.mark.parametrize("overrides", [(), *MARKED])
def test_a_row_that_is_not_the_papers_setting_is_marked_with_what_differs(run, overrides):
    """Against the configuration that Hydra composes for the run; where a model lies or how it runs is no difference."""
    values = dict.fromkeys(ROLES, 0.5)
    path = run(EXPERIMENT, ["triviaqa_liu2024"], settings_of(EXPERIMENT, *overrides), ROLES, **values)
    table = only("liu2024", "task_tuning", [path])
    expected = MARKED.get(overrides, {})
    cells = table.figures.query("task == 'triviaqa' and ours.notna()").set_index("arm")
    assert cells["differs"].to_dict() == {arm: expected.get(arm, "") for arm in ROLES}
    assert table.figures.query("ours.isna()")["differs"].eq("").all()
    text = render([table], "markdown")
    assert text.count("ours¹") == len(expected)
    for said in set(expected.values()):
        assert f"¹ Not the paper's setting: {said}." in text
    assert "| n | 4 |" in text


def test_a_random_model_in_a_papers_experiment_is_not_shown_as_the_papers(run):
    """models=local replaces whole sources: their paths, and the roles that the paper has not."""
    local = {"_target_": "proxytune.models.FamilySpec", "base": {"path": "random"}, "antiexpert": "small"}
    config = settings_of(EXPERIMENT, "limit=4") | {"models": local | {"experts": {}, "tuned": {"mine": "large"}}}
    path = run(
        EXPERIMENT, ["triviaqa_liu2024"], config, {"base": ["base"], "tuned": ["tuned:mine"]}, base=0.0, tuned=0.1
    )
    table = only("liu2024", "task_tuning", [path])
    assert table.differences == [
        "limit=4, not null; models.base.path=random, not meta-llama/Llama-2-13b-hf",
        "limit=4, not null; models.tuned.mine=large, not null",
    ]
    for format in ("terminal", "latex", "csv"):
        assert "random, not meta-llama/Llama-2-13b-hf" in " ".join(render([table], format).split())
    assert r"ours$^1$" in render([table], "latex")


def test_a_secret_place_of_trained_models_is_the_papers(run, monkeypatch):
    """The recorded configuration has *** for what comes from the environment, whatever is set later."""
    config = settings_of(EXPERIMENT)
    config["models"]["experts"]["triviaqa"]["path"] = "***/liu2024/llama2-7b/triviaqa"
    path = run(EXPERIMENT, ["triviaqa_liu2024"], config, ROLES, **dict.fromkeys(ROLES, 0.5))
    for place in (None, "/elsewhere"):
        monkeypatch.setenv("PROXYTUNE_TRAINED", place) if place else monkeypatch.delenv("PROXYTUNE_TRAINED", False)
        assert only("liu2024", "task_tuning", [path]).differences == []


def own_run(run, large, small, tasks, **arms):
    path = run("unused", tasks, **arms)
    made = json.loads(path.read_text())
    members = {"base": large, "antiexpert": small}
    made["provenance"] = {"members": {r: {"identity": p, "source": {"path": p}} for r, p in members.items()}}
    path.write_text(json.dumps(made))
    return path


def test_a_papers_layout_shows_ones_own_families_under_their_own_names(run, capsys):
    tasks = ["gsm8k_liu2024", "my_task"]
    one = own_run(run, "Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-0.5B", tasks, base=0.2, proxy=0.5, mine=0.4, tuned=0.6)
    two = own_run(run, "a/large", "a/small", tasks[1:], base=0.1, tuned=0.5, expert=0.2)
    three = own_run(run, "b/large", "b/small", tasks[1:], base=0.3)
    table = own_table("liu2024", [one, two, three])
    family = "Qwen2.5-0.5B → Qwen2.5-7B"
    assert figure(table, family, "proxy", "gap_closed", "ours") == pytest.approx(75)
    assert figure(table, family, "mine", "relative_performance", "ours") == pytest.approx(100 * 4 / 6)
    assert figure(table, "small → large", "expert", "gap_closed", "ours") == pytest.approx(25)
    assert list(table.figures["label"].unique()) == [
        *(f"{family} {label}" for label in ("base (untuned)", "proxy-tuned", "directly tuned", "mine")),
        *("small → large expert", "small → large base (untuned)", "small → large directly tuned"),
        "small → large (2) base (untuned)",
    ]
    arguments = [f"runs=[{one},{two},{three}]", "format=markdown"]
    assert command(["table", "layout=liu2024", *arguments]) == 0
    text = capsys.readouterr().out
    assert f"| {family} proxy-tuned | ours | 50.0 ± 1.0 | 50.0 ± 1.0 | 75.0% | 83.3% |" in text
    assert "Not the paper's setting" not in text and "| paper |" not in text
    averaged = own_table("fan2024", [one])
    assert figure(averaged, family, "mine", "avg", "ours") == pytest.approx(40)


def test_a_metric_that_is_no_fraction_keeps_its_unit_and_is_in_no_average(run):
    path = own_run(run, "a", "b", ["bits"], base=5.0, tuned=1.0, proxy=2.0)
    made = json.loads(path.read_text())
    made["tasks"]["bits"] |= {"metric": "bits_per_byte", "higher_is_better": False}
    path.write_text(json.dumps(made))
    table = own_table("liu2024", [path])
    assert (figure(table, "b → a", "proxy", "bits", "ours"), table.layout.tasks["bits"]) == (
        2.0,
        "bits (bits_per_byte) ↓",
    )
    assert figure(table, "b → a", "proxy", "gap_closed", "ours") == pytest.approx(75)
    assert pd.isna(figure(table, "b → a", "proxy", "relative_performance", "ours"))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("paper", PAPERS)
def test_formats(paper, format, run, capsys):
    named = {"liu2024": "instruction_gsm8k_13b", "fan2024": "single_7b", "eft2024": "scales_13b", "rast2025": "7b_14b"}
    experiment = f"{paper}_{named[paper]}"
    path = run(experiment, [f"gsm8k_{'liu2024' if paper == 'eft2024' else paper}"], base=0.123, tuned=0.456)
    assert command(["table", f"paper={paper}", f"runs={path}", f"format={format}"]) == 0
    text = capsys.readouterr().out
    assert "12.3" in text
    if format == "csv":
        frame = pd.read_csv(io.StringIO(text))
        assert {"paper", "table", "arm", "task", "reference", "ours", "source"} <= set(frame.columns)
        assert not frame.duplicated(["table", "panel", "arm", "task"]).any()
    else:
        assert PAPERS[paper].statement.split(",")[0].split("_")[0] in text
        assert ("---" if format == "latex" else "—") in text
    if format == "latex":
        assert text.count(r"\begin{table}") == text.count(r"\end{table}")
        first = [line for line in text.split(r"\bottomrule")[0].splitlines() if "&" in line]
        assert len(first) > 3 and len({line.count("&") for line in first}) == 1


def test_every_markdown_row_has_every_column():
    text = render(paper_tables("fan2024", table="multi_task"), "markdown")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 2 * 8
    assert {row.count("|") for row in rows} == {12}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["paper=liu2023"], "unknown paper 'liu2023'. Did you mean 'liu2024'?"),
        (["paper=fan2024", "table=singletask"], "Did you mean 'single_task'?"),
        (["paper=fan2024", "format=latx"], "Did you mean 'latex'?"),
        (["paper=fan2024", "runs=[nowhere]"], "nowhere does not exist"),
        (["paper=fan2024", "runs=7"], "runs=7 is not allowed"),
        (["layout=fan2023"], "Did you mean 'fan2024'?"),
        (["layout=fan2024"], "layout=fan2024 needs runs=[FOLDER,...]"),
        (["layout=fan2024", "paper=fan2024"], "paper=... has no effect with layout=..."),
        (["layout=fan2024", "table=icl"], "table=... has no effect with layout=..."),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    assert command(["table", *arguments]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not a results.json"),
        ("[]", "Input should be an object"),
        ('{"tasks": {}}', "names no experiment"),
        (
            '{"tasks": {}, "provenance": {"config": {"experiment": "miniature"}}}',
            "unknown experiment of fan2024 'miniature'",
        ),
    ],
)
def test_bad_runs(tmp_path, content, message):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match=message):
        paper_tables("fan2024", [tmp_path])


def test_experiments_of_the_tables_are_those_in_conf():
    """Every experiment of a paper fills some table, and every table names experiments that exist."""
    conf = Path(__file__).parents[1] / "conf" / "experiment"
    for paper in PAPERS.values():
        named = {name for layout in paper.tables for name in layout.experiments}
        assert named == {path.stem for path in conf.glob(f"{paper.id}_*.yaml")}


def test_the_command_prints_a_table_and_refuses_in_one_line(capsys):
    assert command(["table", "paper=fan2024", "table=multi_task", "format=markdown"]) == 0
    assert "39.42" in capsys.readouterr().out
    for arguments in (["paper=fan2025"], ["papr=fan2024"], ["table=icl"], ["paper=fan2024", "runs=[a"], ["paper"]):
        assert command(["table", *arguments]) == 1
        captured = capsys.readouterr()
        assert captured.out == "" and len(captured.err.splitlines()) == 1


@pytest.mark.parametrize("line", COMMANDS)
def test_the_commands_of_the_pages_compose(line, capfd):
    assert command([*shlex.split(line)[1:], "--cfg", "job"]) == 0
    assert "arms:" in capfd.readouterr().out
