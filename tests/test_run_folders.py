"""A folder belongs to one run, a sweep ends in one table, ranges make arms, and Ctrl-C says what is lost."""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from proxytune import experiment
from proxytune.atomic import write_json
from proxytune.cli import main, run_folder
from proxytune.cli.ranges import expanded
from proxytune.errors import UserError
from proxytune.experiment.answers.stopping import Stopping
from proxytune.experiment.arm_spec import ArmSpec
from proxytune.record import ArmRecord, Record, RuleRecord, TaskRecord, read_record

RUN = ("run", "models=local", "models.base.path=large", "models.antiexpert.path=small", "task=gsm8k")
RUN = (*RUN, "+models.experts.gsm8k.path=tuned", "only=[base,proxy]")
Command = Callable[..., tuple[int, str, str]]


def _record(value: float) -> Record:
    arms = {
        "base": ArmRecord(value=0.25, stderr=0.01, n=10),
        "proxy": ArmRecord(value=value, stderr=0.02, n=10, rule=RuleRecord(id="static")),
    }
    return Record(tasks={"gsm8k": TaskRecord(metric="exact_match", higher_is_better=True, n=10, arms=arms)})


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """A run in an empty folder whose proxy scores its weight over 10; weight 9 fails."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def run(family: object, tasks: object, arms: dict, engine: object, *, output_dir: Path, **_: object) -> Record:
        (weight,) = (spec.rule.weights for name, spec in arms.items() if name.startswith("proxy"))
        if weight == 9:
            raise UserError("the disk is full")
        write_json(output_dir / "results.json", _record(weight / 10).model_dump())
        return read_record(output_dir)

    monkeypatch.setattr(experiment, "run", run)
    monkeypatch.setattr(experiment, "check_run", lambda *_, **__: None)

    def call(*arguments: str) -> tuple[int, str, str]:
        status = main([*RUN, *arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


# --- folders --------------------------------------------------------------------------------------------------------


def test_a_folder_is_resumed_by_its_own_configuration_alone(command: Command) -> None:
    assert command("output=here", "seed=1")[0] == 0
    before = Path("here/.hydra/overrides.yaml").read_text()
    assert command("output=here", "seed=1", "store=other.sqlite")[0] == 0
    overrides = Path("here/.hydra/overrides.yaml").read_text()
    status, _, error = command("output=here", "seed=2", "limit=7")
    assert status == 1
    expected = "output=here holds another run (limit=null there, 7 here; seed=1 there, 2 here): give output=here-2"
    assert expected in error.replace(f"{Path.cwd()}/", "")
    assert error.count("\n") == 1
    assert Path("here/.hydra/overrides.yaml").read_text() == overrides != before


def test_a_folder_of_results_that_no_configuration_is_known_of_is_another_runs(command: Command) -> None:
    write_json(Path("here/results.json"), _record(0.5).model_dump())
    status, _, error = command("output=here")
    assert status == 1
    assert "holds another run" in error


def test_a_folder_at_work_is_refused(command: Command) -> None:
    Path("here").mkdir()
    with FileLock(Path("here") / run_folder.LOCK):
        status, _, error = command("output=here")
    assert status == 1
    assert "another run is at work there; give output=" in error
    assert command("output=here")[0] == 0


def test_another_sweep_is_refused_before_its_first_job(command: Command) -> None:
    assert command("-m", "arms.proxy.rule.weights=1,2", "output=sweep")[0] == 0
    status, _, error = command("-m", "arms.proxy.rule.weights=1,3", "output=sweep")
    assert status == 1
    assert "sweep/1 holds another run (arms.proxy.rule.weights=2 there, 3 here)" in error
    assert read_record("sweep/1").tasks["gsm8k"].arms["proxy"].value == 0.2
    assert command("-m", "arms.proxy.rule.weights=1,2", "output=sweep")[0] == 0


# --- sweeps ---------------------------------------------------------------------------------------------------------


def test_a_sweep_ends_with_one_table_of_what_was_swept(command: Command) -> None:
    status, out, _ = command("-m", "arms.proxy.rule.weights=2,4,3", "output=sweep")
    assert status == 0
    table = out[out.index("The sweep") :].splitlines()
    assert "arms.proxy.rule.weights" in table[1] or "arms.proxy.rule.weights" in table[2]
    rows = [line.split() for line in table if line.strip()[:2] in ("0 ", "1 ", "2 ")]
    assert rows == [["0", "2", "20.0", "±", "2.0"], ["1", "4", "40.0", "±", "2.0"], ["2", "3", "30.0", "±", "2.0"]]
    assert "| 1 | 4 | **40.0 ± 2.0** |" in Path("sweep/sweep.md").read_text()
    with Path("sweep/sweep.csv").open() as file:
        cells = {(row["arms.proxy.rule.weights"], row["arm"]): float(row["value"]) for row in csv.DictReader(file)}
    assert cells[("3", "proxy")] == 0.3
    assert cells[("3", "base")] == 0.25
    assert len(cells) == 6


def test_a_sweep_with_failures_has_its_table_and_says_which_failed(command: Command) -> None:
    status, out, error = command("-m", "arms.proxy.rule.weights=2,9,3", "output=sweep")
    assert status == 1
    assert error.splitlines()[-1] == "proxytune: the disk is full"
    told = " ".join(out[out.index("The sweep") :].split())
    assert "Job 1 " in told and "arms.proxy.rule.weights=9" in told and told.endswith("failed: the disk is full")
    assert "| 1 | 9 | – |" in Path("sweep/sweep.md").read_text()


def test_a_failed_job_is_told_of_in_its_folder_until_it_is_run_again(command: Command, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_TOKEN", "the disk is")
    assert command("-m", "arms.proxy.rule.weights=9,3", "output=sweep")[0] == 1
    assert Path("sweep/0/error.txt").read_text() == "*** full\n"  # as in a log, nothing that is secret
    monkeypatch.setattr(experiment, "run", lambda *_, **__: Record(tasks={}))
    assert command("-m", "arms.proxy.rule.weights=9,3", "output=sweep")[0] == 0
    assert not Path("sweep/0/error.txt").exists()


def test_the_report_of_a_sweep_has_its_table_and_says_which_job_failed(command: Command) -> None:
    assert command("-m", "arms.proxy.rule.weights=2,9,3", "output=sweep")[0] == 1
    assert main(["report", "sweep"]) == 0
    page = Path("sweep/report.html").read_text()
    table = " ".join(page[page.index("<h2>The sweep</h2>") : page.index("<h2>Results side by side</h2>")].split())
    assert '<th scope="col">arms.proxy.rule.weights</th>' in table
    assert "<strong>30.0 ± 2.0</strong>" in table and "<td>20.0 ± 2.0</td>" in table
    assert "failed: the disk is full</p>" in table


@pytest.mark.parametrize(("headline", "cell"), [("base", "25.0 ± 1.0"), ("proxy", "20.0 ± 2.0")])
def test_the_headline_arm_stands_in_the_table(command: Command, headline: str, cell: str) -> None:
    assert command("-m", "arms.proxy.rule.weights=2,4", f"headline={headline}", "output=sweep")[0] == 0
    assert f"| 0 | 2 | {'**' * (headline == 'base')}{cell}" in Path("sweep/sweep.md").read_text()


# --- ranges ---------------------------------------------------------------------------------------------------------


def _static(weights: object) -> ArmSpec:
    return ArmSpec(rule={"_target_": "proxytune.fusion.Static", "weights": weights})


def test_a_range_is_an_arm_for_each_value_the_last_one_included() -> None:
    arms = expanded({"proxy": _static("0.2:2.0:0.2"), "one": _static(0.5)})
    assert list(arms) == ["proxy", "one"]
    names = [f"proxy[weights={tenths / 10}]" for tenths in range(2, 21, 2)]
    assert list(arms["proxy"]) == names
    assert [spec.rule["weights"] for spec in arms["proxy"].values()] == [tenths / 10 for tenths in range(2, 21, 2)]
    assert list(arms["one"]) == ["one"]
    down = expanded({"proxy": _static("1:-1:-1")})["proxy"]
    assert [spec.rule["weights"] for spec in down.values()] == [1.0, 0.0, -1.0]


@pytest.mark.parametrize("text", ["0:1:0", "1:0:0.5", "0:1:-1", "0:1:0.0001"])
def test_a_range_without_values_or_with_too_many_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"arms\.proxy\.rule\.weights="):
        expanded({"proxy": _static(text)})


def test_only_names_all_arms_of_a_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    calls: list[dict] = []
    monkeypatch.setattr(
        experiment, "run", lambda *given, **more: calls.append({"arms": given[2], **more}) or Record(tasks={})
    )
    assert main([*RUN, "arms.proxy.rule.weights=0:1:0.5", "output=here"]) == 0
    (call,) = calls
    assert call["only"] == ["base", "proxy[weights=0.0]", "proxy[weights=0.5]", "proxy[weights=1.0]"]
    assert call["arms"]["proxy[weights=0.5]"].rule.weights == 0.5


# --- Ctrl-C ---------------------------------------------------------------------------------------------------------


def _interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_the_first_ctrl_c_waits_for_a_block_that_is_nearly_done() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Stopping() as stopping:
        stopping.begin(3)
        stopping.step()
        _interrupt()
        stopping.step()
        with pytest.raises(KeyboardInterrupt):
            stopping.end()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("case", ["second", "far", "no pace"])
def test_ctrl_c_stops_at_once(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Stopping() as stopping:
        stopping.begin(3)
        if case != "no pace":
            stopping.step()
        if case == "far":
            monkeypatch.setattr("proxytune.experiment.answers.stopping.NEAR", -1.0)
        if case == "second":
            _interrupt()
        with pytest.raises(KeyboardInterrupt):
            _interrupt()
