"""Runs logged to W&B, read back from the files that it writes offline."""

# ruff: noqa: F811 (fixtures are imported)
from __future__ import annotations

import json
import logging
import os
import re
import shlex
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb
from wandb.sdk.launch.sweeps import utils as sweeps
from wandb_files import Logged, logged_in
from wandb_runs import ENGINE, ITEMS, SECRETS, check_summary, data, members, run  # noqa: F401

from proxytune.cli import main
from proxytune.experiment.answers import shared
from proxytune.experiment.answers.store import AnswerStore
from proxytune.progress import ArmProgress, Progress, TaskProgress
from proxytune.record import Record, read_record
from proxytune.tracking.wandb import Wandb, WandbTracker


def test_a_run_is_logged_with_all_that_it_found_and_no_secret(run, tmp_path: Path, monkeypatch, capfd):
    (tmp_path / "secretive.py").write_text(ENGINE)
    monkeypatch.syspath_prepend(tmp_path)
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    keyed = ["engine._target_=secretive.Keyed", "allow_targets=[secretive]", "+engine.api_key='${oc.env:MY_API_KEY}'"]
    assert run(*keyed, "logger.tags=[mine]", "trace=summary", "report=true") == 0, capfd.readouterr().err
    [logged] = logged_in(tmp_path / "out")
    record = read_record(tmp_path / "out")
    assert (logged.run.project, list(logged.run.tags), logged.run.run_group) == ("proxytune", ["mine"], "")
    assert logged.exit_code == 0
    assert logged.config["engine"]["api_key"] == "***"
    assert logged.config["arms"]["proxy"]["rule"]["weights"] == 1.0
    assert logged.config["provenance"]["libraries"] == record.provenance.libraries
    check_summary(logged, record)
    check_tables(logged, record, tmp_path / "out")
    check_progress(logged, record)
    check_weights(logged, record)
    for name in ("scores", "gap_closed"):
        assert "<svg" in (logged.folder / "files" / logged.summary[f"figures/{name}.path"]).read_text()
    [files] = (files for name, files in logged.artifacts.items() if name.startswith("run-") and "results.json" in files)
    assert {"results.csv", "table.md", "items/miniature_trivia.jsonl", "items/miniature_tqa.jsonl"} < set(files)
    assert {"report.html", "traces/miniature_trivia.parquet"} < set(files)
    written = [path for path in tmp_path.rglob("*") if path.is_file() and not path.name.startswith("secretive.")]
    assert any(path.suffix == ".wandb" for path in written)
    for path in written:
        content = path.read_bytes()
        assert not [name for name, value in SECRETS.items() if value.encode() in content], path


def check_tables(logged: Logged, record: Record, folder: Path) -> None:
    results = {(row["task"], row["arm"]): row for row in logged.table("results") if row["headline"]}
    assert results["miniature_tqa", "proxy"]["value"] == record.tasks["miniature_tqa"].arms["proxy"].value
    assert len(results) == 8
    for task in record.tasks:
        items = [json.loads(line) for line in (folder / f"items/{task}.jsonl").read_text().splitlines()]
        rows = logged.table(f"samples/{task}")
        assert [row["prompt"] for row in rows] == [item["prompt"] for item in items]
        metric = record.tasks[task].metric
        assert [row[f"dynamic/{metric}"] for row in rows] == [item["arms"]["dynamic"][metric] for item in items]
    assert [row["base"] for row in logged.table("samples/miniature_trivia")] == [
        json.loads(line)["arms"]["base"]["output"]
        for line in (folder / "items/miniature_trivia.jsonl").read_text().splitlines()
    ]


def check_progress(logged: Logged, record: Record) -> None:
    steps = [row for row in logged.history if "progress/answers" in row]
    assert [row["progress/answers"] for row in steps] == sorted(row["progress/answers"] for row in steps)
    items = [row.get("progress/miniature_trivia/proxy/items", 0) for row in steps]
    assert items[0] < items[-1] == ITEMS
    for task_name, task in record.tasks.items():
        for arm_name, arm in task.arms.items():
            assert steps[-1][f"progress/{task_name}/{arm_name}/{task.metric}"] == pytest.approx(arm.value)
    assert not any(key.startswith("progress/") for key in logged.summary)


def check_weights(logged: Logged, record: Record) -> None:
    for task in record.tasks:
        histogram = next(row for row in logged.history if f"{task}/dynamic/alpha/{task[10:]}.values" in row)
        counts = histogram[f"{task}/dynamic/alpha/{task[10:]}.values"]
        bins = histogram[f"{task}/dynamic/alpha/{task[10:]}.bins"]
        mean = sum(n * (low + high) / 2 for n, low, high in zip(counts, bins, bins[1:], strict=False)) / sum(counts)
        expected = record.tasks[task].arms["dynamic"].weights[task[10:]].mean
        assert mean == pytest.approx(expected, abs=bins[1] - bins[0])


def test_the_jobs_of_a_sweep_are_one_group_and_a_job_given_again_goes_on_with_its_run(run, tmp_path: Path):
    sweep = ("-m", "arms.proxy.rule.weights=0.5,1.5", "task.names=[miniature_tqa]", "only=[base,proxy]", "output=sweep")
    assert run(*sweep) == 0
    [first], [second] = (logged_in(tmp_path / "sweep" / job) for job in "01")
    assert {first.run.run_group, second.run.run_group} == {f"{tmp_path.name}/sweep"}
    assert first.run.run_id != second.run.run_id
    assert [one.config["arms"]["proxy"]["rule"]["weights"] for one in (first, second)] == [0.5, 1.5]
    assert [one.exit_code for one in (first, second)] == [0, 0]
    time.sleep(1)  # W&B names its folders by the second
    assert main(["sync", "sweep/1", "mode=offline"]) == 0
    once, again = logged_in(tmp_path / "sweep/1")
    assert (again.run.run_id, again.run.run_group, again.run.resume) == (
        second.run.run_id,
        f"{tmp_path.name}/sweep",
        True,
    )
    names = [name for name in once.summary if name.startswith("miniature_")]
    assert names and {name: once.summary[name] for name in names} == {name: again.summary[name] for name in names}


def test_a_killed_run_is_not_closed_and_continues_as_the_same_w_and_b_run(run, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(shared, "BLOCK", 2)
    wandb.teardown()
    child = os.fork()
    if child == 0:
        put = AnswerStore.put
        monkeypatch.setattr(
            AnswerStore, "put", lambda self, answers: (put(self, answers), os.kill(os.getpid(), signal.SIGKILL))
        )
        run()
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    time.sleep(1)  # W&B names its folders by the second
    assert run() == 0
    killed, resumed = logged_in(tmp_path / "out")
    assert killed.exit_code is None and resumed.exit_code == 0
    # Of a killed process W&B has whole blocks of 32 KiB: maybe none of a short run, whose id is the folder's name.
    assert killed.folder.name.rpartition("-")[2] == resumed.run.run_id and resumed.run.resume
    check_summary(resumed, read_record(tmp_path / "out"))
    check_progress(resumed, read_record(tmp_path / "out"))


def test_a_run_that_fails_is_closed_as_failed(run, tmp_path: Path, capsys):
    assert run("task.data_dir=nowhere") == 1
    [logged] = logged_in(tmp_path / "out")
    assert logged.exit_code == 1
    assert "nowhere" in logged.summary["error"]
    assert "nowhere" in capsys.readouterr().err


def test_a_run_some_of_whose_arms_fail_is_failed_and_has_its_results(run, tmp_path: Path, monkeypatch):
    (tmp_path / "faulty.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(tmp_path)
    arm = "+arms.faulty={rule: {_target_: faulty.Faulty}, experts: own}"
    assert run(arm, "allow_targets=[faulty]", "only=[base,tuned,faulty]", "task.names=[miniature_tqa]") == 1
    [logged] = logged_in(tmp_path / "out")
    assert logged.exit_code == 1
    assert "miniature_tqa/tuned/gap_closed" in logged.summary
    assert not [name for name in logged.summary if "faulty" in name]


FAULTY = """
from dataclasses import dataclass
from typing import ClassVar
import torch

@dataclass(frozen=True)
class Faulty:
    id: ClassVar[str] = "faulty"
    formula: ClassVar[str] = ""
    paper: ClassVar[str] = ""

    def fuse(self, base, experts, antiexpert):
        from proxytune.fusion import Fused
        if base.abs().sum() > 0:
            raise ZeroDivisionError("on real logits")
        return Fused(base, torch.zeros(experts.shape[0], *base.shape[:-1]))
"""


def test_an_error_of_wandb_is_one_warning_and_the_run_is_closed(caplog):
    calls: list[str] = []

    class Broken:
        summary = SimpleNamespace(update=lambda values: calls.append("summary"))

        def log(self, values: object) -> None:
            calls.append("log")
            raise OSError("the service is gone")

        def finish(self, exit_code: int) -> None:
            calls.append(f"finish {exit_code}")

    caplog.set_level(logging.WARNING)
    tracker = WandbTracker(Broken())
    progress = Progress({"task": TaskProgress("acc", {"base": ArmProgress()})})
    tracker.progress(progress)
    progress.tasks["task"].end({})
    tracker.progress(progress)
    tracker.failed("stopped", status=130)
    assert calls == ["log", "finish 130"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "the results are not affected: OSError: the service is gone" in caplog.text


def test_wandb_is_neither_needed_nor_imported_without_a_logger(run, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert run("logger=none", "task.names=[miniature_tqa]", "only=[base]") == 0
    assert not (tmp_path / "out/wandb").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("logger.mode=dryrun", "logger.mode='dryrun' is not allowed: it is online, or offline"),
        ("logger.projct=x", "logger.projct"),
        ("logger.patience=0", "logger.patience=0 is not allowed: it is a number of seconds above 0"),
        ("logger.tags=mine", "logger.tags='mine' is not allowed: it is a list of texts"),
        ("logger._target_=proxytune.reporting.tidy", "only parts of these may be built here"),
    ],
)
def test_wrong_settings_are_refused_before_anything_starts(run, tmp_path: Path, capsys, override: str, said: str):
    assert run(("+" if "projct" in override else "") + override) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_without_the_package_the_command_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Exception, match=r"pip install 'proxytune\[wandb\]'"):
        Wandb()


ROOT = Path(__file__).parents[1]
COMMANDS = re.findall(r"^proxytune (.*?)(?:  +#.*)?$", (ROOT / "docs/wandb.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("run ")])
def test_the_documented_runs_compose(command: str, capfd):
    arguments = [argument.partition(",")[0] for argument in shlex.split(command) if argument != "-m"]
    assert main([*arguments, "--cfg", "job"]) == 0
    assert "_target_: proxytune.tracking.wandb.Wandb" in capfd.readouterr().out


def test_the_documented_ways_to_log_finished_runs_work(run, tmp_path: Path, capsys):
    for folder in ("RUN", "OTHER_RUN"):
        assert run("logger=none", "task.names=[miniature_tqa]", "only=[base]", f"output={folder}") == 0
        assert not (tmp_path / folder / "wandb").exists()
    first, second = (shlex.split(command) for command in COMMANDS if command.startswith("sync "))
    assert {command.split()[0] for command in COMMANDS} == {"run", "sync"}
    capsys.readouterr()
    assert main([*first, "mode=offline"]) == 0
    time.sleep(1)
    assert main(second) == 0
    said = capsys.readouterr().out
    assert said.count("RUN: W&B run ") == 3
    once, again = logged_in(tmp_path / "RUN")
    assert once.run.run_id == again.run.run_id and again.run.run_group == "july" and again.run.project == "mine"
    record = read_record(tmp_path / "RUN")
    check_summary(once, record)
    assert once.exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere/results.json does not exist"),
        (["mode=offline"], "no run is given"),
        (["nowhere", "tags=[a"], "tags=[a is not a list [TAG,...]"),
        (["nowhere", "mode=dry"], "logger.mode='dry' is not allowed"),
        (["nowhere", "projekt=x"], "Did you mean 'project'?"),
    ],
)
def test_sync_says_what_is_wrong_in_one_line(arguments: list[str], said: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nowhere").mkdir(exist_ok=True)
    assert main(["sync", *arguments]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


@pytest.mark.parametrize("path", sorted((ROOT / "conf/sweep").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_agent_of_a_w_and_b_sweep_starts_runs_that_are_its_own(path: Path, run, tmp_path: Path, monkeypatch):
    """The command that W&B's agent makes of the file, in the environment that it gives a run."""
    config = sweeps.load_sweep_config(str(path))
    given = {name: {"value": choices["values"][0]} for name, choices in config["parameters"].items()}
    command = []
    for word in sweeps.create_sweep_command(config["command"]):
        made = sweeps.create_sweep_command_args({"args": given}).get(word[2:-1]) if word.startswith("${") else None
        command += [word] if made is None else made
    assert command[:2] == ["proxytune", "run"] == [config["program"], "run"]
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    monkeypatch.setenv("WANDB_RUN_ID", "agent1")
    assert run(*command[2:], "task.names=[miniature_tqa]", "logger.mode=offline") == 0
    [logged] = logged_in(tmp_path / "outputs/sweeps/sweep1/agent1")
    assert logged.run.run_id == "agent1"
    assert logged.config["arms"]["proxy"]["rule"]["weights"] == given["arms.proxy.rule.weights"]["value"]
    task, arm, name = config["metric"]["name"].split("/")
    assert name in {key.split("/")[2] for key in logged.summary if key.startswith(f"miniature_tqa/{arm}/")}
    assert task.startswith("miniature_")
