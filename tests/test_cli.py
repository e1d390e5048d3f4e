"""The command line: what it prints, what it refuses, and that a refusal is one line."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

import proxytune
from proxytune import experiment
from proxytune.cli import main
from proxytune.errors import UserError

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
        return {"tasks": {}, "failed": {}, "provenance": {}}

    monkeypatch.setattr(experiment, "run", run)
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
    assert call["arms"]["base"] == {"model": "base"}
    assert call["arms"]["proxy"]["rule"].weights == 1.0
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
    assert runs[0]["arms"]["mild"]["rule"].weights == 0.3


def test_a_rule_is_swapped_and_an_arm_removed(command: Command, runs: list):
    assert command("run", *GSM8K, "fusion@arms.proxy.rule=dynamic", "~arms.all_joint").status == 0
    arms = runs[0]["arms"]
    assert type(arms["proxy"]["rule"]).__name__ == "MatchKL"
    assert "all_joint" not in arms


def test_zero_is_a_value(command: Command, runs: list):
    assert command("run", *GSM8K, "arms.proxy.rule.weights=0", "num_fewshot=0", "seed=0").status == 0
    assert runs[0]["arms"]["proxy"]["rule"].weights == 0
    assert runs[0]["num_fewshot"] == 0


def test_a_sweep_runs_every_job_in_a_folder_of_its_own(command: Command, runs: list, tmp_path: Path):
    result = command("run", *GSM8K, "-m", "arms.proxy.rule.weights=0.5,1.5", "seed=1,2", "output=sweep")
    assert result.status == 0
    assert [(call["arms"]["proxy"]["rule"].weights, call["seed"]) for call in runs] == [
        (0.5, 1),
        (0.5, 2),
        (1.5, 1),
        (1.5, 2),
    ]
    assert [call["output_dir"] for call in runs] == [tmp_path / "sweep" / str(job) for job in range(4)]


def test_a_sweep_with_a_wrong_job_does_not_begin(command: Command, runs: list, tmp_path: Path):
    result = command("run", *GSM8K, "-m", "limit=1,0")
    assert (result.status, runs, list(tmp_path.iterdir())) == (1, [], [])
    assert result.err.startswith("proxytune: limit=0 is not allowed")
    assert result.err.count("\n") == 1


def test_a_job_that_fails_is_named_and_the_others_run(command: Command, monkeypatch: pytest.MonkeyPatch):
    def run(*_: object, limit: int, **__: object) -> dict:
        if limit == 1:
            raise UserError("the disk is full")
        return {"tasks": {}, "failed": {}, "provenance": {}}

    monkeypatch.setattr(experiment, "run", run)
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
    with pytest.raises(ZeroDivisionError, match="a bug"):
        command("run", *GSM8K)


def test_a_failed_arm_makes_a_failing_status_after_the_table(command: Command, monkeypatch: pytest.MonkeyPatch):
    record = {"tasks": {}, "failed": {"gsm8k": {"proxy": "ValueError: no"}}, "provenance": {}}
    monkeypatch.setattr(experiment, "run", lambda *_, **__: record)
    result = command("run", *GSM8K, "output=here")
    assert result.status == 1
    assert "Results:" in result.out
    assert result.err.startswith("proxytune: 1 of the arms failed: proxy on gsm8k (ValueError: no).")
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(("store", "said"), [("here.sqlite", "goes on from here.sqlite"), ("null", "nothing was kept")])
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


# --- printing -------------------------------------------------------------------------------------------------------


def test_the_configuration_is_printed_and_nothing_is_run(command: Command, runs: list, tmp_path: Path):
    result = command("run", "seed=5", "--cfg", "job", "limit=2")
    assert result.status == 0
    assert "seed: 5" in result.out
    assert "_target_: proxytune.miniature.family" in result.out
    assert not runs
    assert not list(tmp_path.iterdir())


def test_help_names_the_choices_and_examples(command: Command):
    result = command("run", "--help")
    assert result.status == 0
    for text in ("miniature=tiny", "fusion: ", "experiment: ", "-m seed=0,1,2", "--cfg job"):
        assert text in result.out


def test_the_bare_command_lists_its_sub_commands(command: Command):
    assert command().out == command("--help").out
    assert "run " in command().out
    assert command("--version").out == f"proxytune {proxytune.__version__}\n"


# --- refusals -------------------------------------------------------------------------------------------------------

COMMAND_LINE = {
    "command": (["rnu"], "unknown command 'rnu'. Did you mean 'run'?"),
    "flag": (["run", "--cgf", "job"], "Did you mean '--cfg'?"),
    "pickle": (["run", "--experimental-rerun", "x"], "unknown flag '--experimental-rerun'"),
    "flag without value": (["run", "--cfg"], "expected one argument"),
    "no equals sign": (["run", "limit"], "cannot read the argument 'limit' as key=value"),
    "open bracket": (["run", "only=[base"], "cannot read the argument 'only=[base'"),
    "sweep without -m": (["run", "seed=0,1"], "--multirun"),
    "misspelt key": (["run", "sede=1"], "unknown key 'sede'. Did you mean 'seed'?"),
    "unknown arm": (["run", "arms.proxi.rule.weights=1"], "Did you mean 'arms.proxy'?"),
    "hint to add": (["run", "arms.mild.model=base"], "To add an entry: +arms.mild=..."),
    "added key": (["run", "+sed=1"], "unknown key 'sed'. Did you mean 'seed'?"),
    "added key of an arm": (["run", "+arms.a={model: base, expert: all}"], "Did you mean 'arms.a.experts'?"),
    "added key of the task": (["run", "+task.data_dri=x"], "Did you mean 'task.data_dir'?"),
    "parameter of a rule": (["run", "+arms.proxy.rule.weight=1"], "Did you mean 'arms.proxy.rule.weights'?"),
    "parameter of the engine": (["run", "+engine.batchsize=1"], "Did you mean 'engine.batch_size'?"),
    "experiment": (
        ["run", "experiment=minature"],
        "unknown choice for experiment 'minature'. Did you mean 'miniature'?",
    ),
    "models": (["run", "models=locla", "task=gsm8k"], "unknown choice for models 'locla'. Did you mean 'local'?"),
    "task group": (["run", "task=gsmk8"], "unknown choice for task 'gsmk8'. Did you mean 'gsm8k'?"),
    "rule": (["run", "fusion@arms.proxy.rule=dynamo"], "Did you mean 'dynamic'?"),
    "rule class": (
        ["run", "arms.proxy.rule._target_=proxytune.fusion.Statc"],
        "Did you mean 'proxytune.fusion.Static'?",
    ),
    "module": (["run", "arms.proxy.rule._target_=proxytune.fusion.sttic.Static"], "no module proxytune.fusion.sttic"),
    "task": (["run", "task.names=[miniature_gms]"], "unknown task 'miniature_gms'. Did you mean 'miniature_gsm'?"),
    "style": (["run", *LOCAL, "task=gsm8k", "task.style=lui2024"], "Did you mean 'liu2024'?"),
    "only": (["run", "only=[proxi]"], "Did you mean 'proxy'?"),
    "removed arm": (["run", "~arms.proxi"], "arms.proxi"),
    "no task": (["run", *LOCAL], "You must specify 'task'"),
    "missing value": (["run", "models=local", "task=gsm8k"], "give models.base.path=..."),
    "interpolation": (["run", "output=${nowhere}"], "nowhere"),
    "limit": (["run", "limit=abc"], "limit=abc is not allowed: it is an integer from 1"),
    "limit 0": (["run", "limit=0"], "limit=0 is not allowed"),
    "limit true": (["run", "limit=true"], "limit=True is not allowed"),
    "seed": (["run", "seed=x"], "seed=x is not allowed: it is an integer from 0"),
    "negative seed": (["run", "seed=-1"], "seed=-1 is not allowed"),
    "no seed": (["run", "seed=null"], "seed=null is not allowed"),
    "few-shot": (["run", "num_fewshot=-1"], "num_fewshot=-1 is not allowed"),
    "only nothing": (["run", "only=[]"], "only=[] is not allowed"),
    "tasks as text": (["run", "task.names=gsm8k"], "task.names=gsm8k is not allowed: it is a list"),
    "no tasks": (["run", "task.names=[]"], "task.names=[] is not allowed"),
    "alpha nan": (["run", "arms.proxy.rule.weights=nan"], "arms.proxy.rule: "),
    "alpha text": (["run", "arms.proxy.rule.weights=much"], "arms.proxy.rule: "),
    "low above high": (["run", "arms.dynamic.rule.low=3", "arms.dynamic.rule.high=1"], "arms.dynamic.rule: "),
    "no experts": (["run", "arms.proxy.experts=[]"], "arms.proxy.experts=[] is empty"),
    "experts misspelt": (["run", "arms.proxy.experts=owm"], "arms.proxy.experts=owm is not allowed"),
    "experts of a model": (["run", "+arms.base.experts=all"], "arms.base.experts has no effect"),
    "model and rule": (["run", "+arms.proxy.model=base"], "arms.proxy needs either a model"),
    "empty arm": (["run", "+arms.a={}"], "arms.a needs either a model"),
    "arm as text": (["run", "+arms.a=base"], "arms.a=base is not allowed: it is an arm"),
    "rule as text": (["run", "+arms.a={rule: static}"], "+fusion@arms.<arm>.rule=<file>"),
    "rule without class": (["run", "+arms.a={rule: {weights: 1}}"], "arms.a.rule has no _target_"),
    "foreign class": (["run", "arms.proxy.rule._target_=os.system"], "arms.proxy.rule._target_=os.system is outside"),
    "foreign class by a detour": (
        ["run", "arms.proxy.rule._target_=proxytune.fusion.static.torch.load"],
        "is not a class or function of proxytune",
    ),
    "foreign family": (["run", "models._target_=subprocess.run"], "models._target_=subprocess.run is outside"),
    "score without file": (["score", "task=gsm8k"], "outputs=... is missing"),
    "score misspelt": (["score", "taks=gsm8k"], "Did you mean 'task'?"),
    "score twice": (["score", "task=a", "task=b"], "task is given twice"),
    "score no file": (["score", "task=gsm8k", "style=liu2024", "outputs=none.jsonl"], "none.jsonl"),
}


@pytest.mark.parametrize("case", COMMAND_LINE)
def test_a_mistake_is_one_line_and_a_failing_status(command: Command, runs: list, case: str):
    arguments, expected = COMMAND_LINE[case]
    result = command(*arguments)
    assert result.status == 1
    assert expected in result.err
    assert result.err.startswith("proxytune: ")
    assert result.err.count("\n") == 1, result.err
    assert not runs


# --- for real -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


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
    assert (tmp_path / "here/table.md").exists()
    assert len(pd.read_csv(tmp_path / "here/results.csv")) >= 25

    again = command(*arguments)
    assert again.status == 0
    assert json.loads((tmp_path / "here/results.json").read_text())["tasks"] == record["tasks"]


REAL = {
    "model folder": (["models.base.path=/no/such/folder"], "/no/such/folder"),
    "data folder": (["task.data_dir=/no/such/data"], "/no/such/data"),
    "expert": (["arms.proxy.experts=[gsm9k]"], "gsm9k"),
    "empty data file": (["task.data_dir=empty"], "test.jsonl"),
    "other tokenizer": (["models.antiexpert.path={other}"], "token"),
    "output in a file": (["output=file/results"], "output: cannot write to"),
    "store in a file": (["store=file/store.sqlite"], "file"),
}


@pytest.mark.parametrize("case", REAL)
def test_what_only_the_files_can_tell_is_one_line_too(
    command: Command, family_folders: dict[str, Path], tmp_path: Path, case: str
):
    arguments, expected = REAL[case]
    (tmp_path / "data/gsm8k").mkdir(parents=True)
    (tmp_path / "data/gsm8k/test.jsonl").write_text('{"question": "1 + 1?", "answer": "#### 2"}\n')
    (tmp_path / "empty/gsm8k").mkdir(parents=True)
    (tmp_path / "empty/gsm8k/test.jsonl").touch()
    (tmp_path / "file").touch()
    other = tmp_path / "other"
    shutil.copytree(family_folders["antiexpert"], other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[10:12]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))

    family = [
        f"models.base.path={family_folders['base']}",
        f"models.antiexpert.path={family_folders['antiexpert']}",
        f"+models.experts.gsm8k.path={family_folders['expert:math']}",
    ]
    local = ["run", "models=local", "task=gsm8k", "task.data_dir=data", "only=[base,proxy]", *family]
    result = command(*local, *(argument.format(other=other) for argument in arguments))
    assert result.status == 1
    assert expected in result.err
    assert result.err.startswith("proxytune: ")
    assert result.err.count("\n") == 1, result.err
    assert not list(tmp_path.rglob("results.*"))
