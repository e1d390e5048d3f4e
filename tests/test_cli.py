"""The command line: what it builds, runs and prints. What it refuses is in test_bad_input.py."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from io import BytesIO, TextIOWrapper
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra

import proxytune
from proxytune import experiment
from proxytune.cli import main
from proxytune.errors import UserError
from proxytune.experiment.arm_spec import ArmSpec
from proxytune.folders import config_dir
from proxytune.record import Record

Command = Callable[..., SimpleNamespace]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`command("run", ...)` in an empty folder: exit status, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def call(*arguments: str) -> SimpleNamespace:
        status = main(arguments)
        captured = capsys.readouterr()
        return SimpleNamespace(status=status, out=captured.out, err=captured.err)

    return call


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """What the runner was called with; it gives back a record of one task and one arm."""
    calls: list[dict] = []

    def run(family: object, tasks: object, arms: object, engine: object, **options: object) -> dict:
        calls.append({"family": family, "tasks": tasks, "arms": arms, "engine": engine, **options})
        return Record(tasks={})

    monkeypatch.setattr(experiment, "run", run)
    monkeypatch.setattr(experiment, "check_run", lambda *_, **__: None)
    return calls


LOCAL = ("models=local", "models.base.path=large", "models.antiexpert.path=small", "+models.experts.gsm8k.path=tuned")
GSM8K = (*LOCAL, "task=gsm8k")


# --- what is built --------------------------------------------------------------------------------------------------


def test_a_run_builds_family_arms_and_engine_and_writes_its_reports(command: Command, runs: list, tmp_path: Path):
    result = command("run", *GSM8K, "output=here", "limit=3", "only=[base,proxy]")
    assert (result.status, result.err) == (0, "")
    (call,) = runs
    assert call["family"].base.path == "large"
    assert call["tasks"] == ["gsm8k_liu2024"]
    assert call["arms"]["base"] == ArmSpec(model="base")
    assert call["arms"]["proxy"].rule.weights == 1.0
    assert (call["limit"], call["num_fewshot"], call["seed"], call["only"]) == (3, None, 0, ["base", "proxy"])
    assert call["output_dir"] == tmp_path / "here"
    assert call["store_path"] == f"{os.environ['PROXYTUNE_CACHE']}/answers.sqlite"
    assert call["config"]["models"]["base"] == {"path": "large"}
    assert {"results.csv", "table.md", ".hydra"} <= {path.name for path in (tmp_path / "here").iterdir()}


@pytest.mark.parametrize(
    "arguments",
    [
        ["+arms.mild={rule: {_target_: proxytune.fusion.Static, weights: 0.3}}"],
        ["+fusion@arms.mild.rule=static", "arms.mild.rule.weights=0.3"],
    ],
)
def test_an_arm_is_added_on_the_command_line(command: Command, runs: list, arguments: list[str]):
    assert command("run", *GSM8K, *arguments).status == 0
    assert list(runs[0]["arms"])[-1] == "mild"
    assert runs[0]["arms"]["mild"].rule.weights == 0.3


def test_a_rule_is_swapped_and_an_arm_removed(command: Command, runs: list):
    assert command("run", *GSM8K, "fusion@arms.proxy.rule=dynamic", "~arms.all_joint").status == 0
    arms = runs[0]["arms"]
    assert type(arms["proxy"].rule).__name__ == "MatchKL"
    assert "all_joint" not in arms


def test_zero_is_a_value(command: Command, runs: list):
    assert command("run", *GSM8K, "arms.proxy.rule.weights=0", "num_fewshot=0", "seed=0").status == 0
    assert runs[0]["arms"]["proxy"].rule.weights == 0
    assert runs[0]["num_fewshot"] == 0


def test_a_sweep_runs_every_job_in_a_folder_of_its_own(command: Command, runs: list, tmp_path: Path):
    result = command("run", *GSM8K, "-m", "arms.proxy.rule.weights=0.5,1.5", "seed=1,2", "output=sweep")
    assert result.status == 0
    assert [(call["arms"]["proxy"].rule.weights, call["seed"]) for call in runs] == [
        (0.5, 1),
        (0.5, 2),
        (1.5, 1),
        (1.5, 2),
    ]
    assert [call["output_dir"] for call in runs] == [tmp_path / "sweep" / str(job) for job in range(4)]


def test_the_jobs_of_a_sweep_share_its_time(command: Command, runs: list, monkeypatch: pytest.MonkeyPatch):
    ticks = iter(range(100))
    monkeypatch.setattr(
        "hydra.core.utils.datetime", SimpleNamespace(now=lambda: SimpleNamespace(strftime=lambda _: str(next(ticks))))
    )
    assert command("run", *GSM8K, "-m", "seed=1,2").status == 0
    first, second = (call["output_dir"] for call in runs)
    assert (first.parent, first.name, second.name) == (second.parent, "0", "1")


def test_each_job_is_composed_once(command: Command, runs: list, monkeypatch: pytest.MonkeyPatch):
    composed: list[list[str]] = []
    compose = ConfigLoaderImpl._load_configuration_impl

    def counted(self: object, config_name: str, overrides: list[str], *rest: object, **more: object) -> object:
        composed.append(overrides)
        return compose(self, config_name, overrides, *rest, **more)

    monkeypatch.setattr(ConfigLoaderImpl, "_load_configuration_impl", counted)
    assert command("run", *GSM8K).status == 0
    assert len(composed) == 1
    assert command("run", *GSM8K, "-m", "seed=1,2,3", "output=sweep").status == 0
    assert len(composed) == 1 + 1 + 3


def test_a_sweep_with_a_wrong_job_does_not_begin(command: Command, runs: list, tmp_path: Path):
    result = command("run", *GSM8K, "-m", "limit=1,0")
    assert (result.status, runs, list(tmp_path.iterdir())) == (1, [], [])
    assert result.err.startswith("proxytune: limit=0 is not allowed")
    assert result.err.count("\n") == 1


def test_a_job_that_fails_is_named_and_the_others_run(command: Command, monkeypatch: pytest.MonkeyPatch):
    def run(*_: object, limit: int, **__: object) -> dict:
        if limit == 1:
            raise UserError("the disk is full")
        return Record(tasks={})

    monkeypatch.setattr(experiment, "run", run)
    monkeypatch.setattr(experiment, "check_run", lambda *_, **__: None)
    result = command("run", *GSM8K, "-m", "limit=1,2", "output=sweep")
    assert result.status == 1
    assert "limit=1" in result.err.splitlines()[0]
    assert result.err.splitlines()[-1] == "proxytune: the disk is full"
    assert "Traceback" not in result.err
    assert Path("sweep/1/table.md").exists()


def test_a_bug_keeps_its_traceback(command: Command, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(experiment, "run", broken)
    with pytest.raises(ZeroDivisionError, match="a bug") as caught:
        command("run", *GSM8K, "store=here.sqlite")
    assert "re-run the same command to resume from here.sqlite" in caught.value.__notes__[0]


def test_all_tracebacks_are_shown_on_demand(command: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(UserError, match="limit=0"):
        command("run", "limit=0")


def test_an_error_of_a_check_is_no_mistake_of_the_user(command: Command, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr("proxytune.cli.schema.check", broken)
    with pytest.raises(ValueError, match="a bug"):
        command("run", *GSM8K)


def test_the_process_is_left_as_it_was(command: Command, runs: list, monkeypatch: pytest.MonkeyPatch):
    seen = []
    monkeypatch.setattr(sys, "argv", ["other", "-m"])
    monkeypatch.setattr(experiment, "run", lambda *_, **__: seen.append((*sys.argv, logging.raiseExceptions)))
    with pytest.raises(AttributeError):
        command("run", *GSM8K)
    assert seen == [("other", "-m", True)]
    assert "HYDRA_FULL_ERROR" not in os.environ
    assert not GlobalHydra.instance().is_initialized()


def test_a_failed_arm_makes_a_failing_status_after_the_table(command: Command, monkeypatch: pytest.MonkeyPatch):
    record = Record(tasks={}, failed={"gsm8k": {"proxy": "ValueError: no"}})
    monkeypatch.setattr(experiment, "run", lambda *_, **__: record)
    result = command("run", *GSM8K, "output=here")
    assert result.status == 1
    assert "Results:" in result.out
    assert result.err.startswith("proxytune: 1 of the arms failed: proxy on gsm8k (ValueError: no).")
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("store", "said"), [("here.sqlite", "to resume from here.sqlite"), ("null", "nothing was kept")]
)
def test_ctrl_c_is_one_line_that_says_how_to_go_on(
    command: Command, monkeypatch: pytest.MonkeyPatch, store: str, said: str
):
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "run", stopped)
    result = command("run", *GSM8K, f"store={store}")
    assert (result.status, result.err.count("\n")) == (130, 1)
    assert result.err.startswith("proxytune: stopped; ")
    assert said in result.err


def test_configuration_files_of_ones_own_are_choices(command: Command, runs: list, tmp_path: Path):
    for file, content in {
        "task/pair.yaml": "names: [gsm8k, triviaqa]\nstyle: liu2024\ndata_dir: null\n",
        "arms/few.yaml": "defaults: [{/fusion@a.rule: static}, _self_]\na: {experts: own, rule: {weights: 0.3}}\n",
    }.items():
        (tmp_path / "mine" / file).parent.mkdir(parents=True)
        (tmp_path / "mine" / file).write_text(content)
    result = command("run", "--config-dir", "mine", *LOCAL, "task=pair", "arms=few")
    assert (result.status, result.err) == (0, "")
    (call,) = runs
    assert call["tasks"] == ["gsm8k_liu2024", "triviaqa_liu2024"]
    assert {name: arm.rule.weights for name, arm in call["arms"].items()} == {"a": 0.3}


@pytest.mark.parametrize("name", ["o/ö ü/x y", "結果"])
def test_a_folder_may_have_any_name(command: Command, runs: list, tmp_path: Path, name: str):
    assert command("run", *GSM8K, f"output={name}").status == 0
    assert runs[0]["output_dir"] == tmp_path / name
    assert command("run", *GSM8K, f"output=${{oc.env:HOME}}/{name}", "--cfg", "job").status == 1


# --- printing -------------------------------------------------------------------------------------------------------


def test_the_configuration_is_printed_and_nothing_is_run(command: Command, runs: list, tmp_path: Path):
    result = command("run", "seed=5", "--cfg", "job", "limit=2")
    assert result.status == 0
    assert "seed: 5" in result.out
    assert "_target_: proxytune.miniature.family" in result.out
    assert not runs
    assert not list(tmp_path.iterdir())


def test_what_a_terminal_cannot_show_is_replaced(runs: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    screen = BytesIO()
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(screen, encoding="latin-1"))
    assert main(["run", *GSM8K, "output=ö結果"]) == 0
    assert screen.getvalue().decode("latin-1").endswith(f"Results: {tmp_path}/ö??\n")


def test_help_names_the_choices_and_examples(command: Command):
    result = command("run", "--help")
    assert result.status == 0
    for text in ("miniature=tiny", "fusion: ", "experiment: ", "-m seed=0,1,2", "--cfg job"):
        assert text in result.out


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("run", ["experiment", "models", "miniature", "task", "arms", "fusion", "engine", "logger"]),
        ("show", ["experiment", "models", "miniature", "task", "arms"]),
        ("train", ["models", "miniature", "task", "training"]),
        ("merge", ["models", "miniature"]),
    ],
)
def test_help_lists_what_can_be_chosen_for_this_command_alone(command: Command, tmp_path: Path, name, groups):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine.yaml").write_text("")
    shown = command(name, "--help", "--config-dir", str(tmp_path)).out
    lines = shown.partition("== Choices (group=choice) ==\n")[2].partition("\n\n")[0].splitlines()
    choices = {group: listed.split(", ") for group, _, listed in (line.partition(": ") for line in lines)}
    assert list(choices) == groups
    for group in groups:
        files = {path.stem for path in (config_dir() / group).glob("*.yaml")}
        assert set(choices[group]) == files | ({"mine"} if group == "models" else set())


def test_the_bare_command_lists_its_sub_commands(command: Command):
    assert command().out == command("--help").out
    assert "run " in command().out
    assert command("--version").out == f"proxytune {proxytune.__version__}\n"


# --- for real -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_no_miniature_is_trained_for_more_examples_than_there_are(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PROXYTUNE_CACHE", str(tmp_path / "new"))
    result = command("run", "miniature=tiny", "num_fewshot=17", "output=here")
    assert result.status == 1
    assert "num_fewshot=17 is not allowed: task 'miniature_gsm' has examples for at most 16" in result.err
    assert [path.name for path in (tmp_path / "new" / "miniature").glob("*/*")] == ["data"]
    assert not (tmp_path / "here").exists()


def test_the_tiny_miniature_runs_from_the_command_to_the_table(
    command: Command, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PROXYTUNE_CACHE", str(cache))
    arguments = ("run", "miniature=tiny", "output=here", "only=[base,expert,tuned,proxy,dynamic]")
    result = command(*arguments)
    assert result.status == 0, result.err
    record = json.loads((tmp_path / "here/results.json").read_text())
    assert len(record["tasks"]) == 5
    for task in record["tasks"].values():
        assert list(task["arms"]) == ["base", "expert", "tuned", "proxy", "dynamic"]
    for text in ("proxy", "Gap closed", "n = 6", f"Results: {tmp_path / 'here'}"):
        assert text in result.out
    assert f"Report: {tmp_path / 'here/report.html'}" in result.out
    assert "miniature_gsm" in (tmp_path / "here/report.html").read_text(encoding="utf-8")
    assert (tmp_path / "here/table.md").exists()
    assert len(pd.read_csv(tmp_path / "here/results.csv")) >= 25

    again = command(*arguments)
    assert again.status == 0
    assert json.loads((tmp_path / "here/results.json").read_text())["tasks"] == record["tasks"]
