"""Hydra's own launchers and sweeper do real sweeps: each gives the table and the results, and its processes end."""

from __future__ import annotations

import csv
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
ARGUMENTS = ("miniature=tiny", "task.names=[miniature_tqa]", "limit=2", "only=[base,proxy]", "report=false")
WEIGHTS = "arms.proxy.rule.weights"


def needs(plugin: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(f"hydra_plugins.{plugin}") is None
    extra = "ray" if "ray" in plugin else "sweep"
    return pytest.mark.skipif(missing, reason=f"{plugin} is missing: pip install 'proxytune[{extra}]'")


def ended(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A sweep into `folder`/sweep, when it has ended.

    The pipe of its output closes only when the last of its processes has ended, or after the time given here.
    """
    command = [sys.executable, "-m", "proxytune", "run", "-m", *ARGUMENTS, "store=answers.sqlite", "output=sweep"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep" / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def sweep(folder: Path, *arguments: str) -> list[dict[str, str]]:
    """The rows of `sweep.csv` of a sweep of two jobs into `folder`/sweep."""
    done = ended(folder, *arguments)
    assert done.returncode == 0, done.stderr
    assert "The sweep" in done.stdout
    assert (folder / "sweep" / "sweep.md").read_text().count("\n| ") == 2
    return rows_of(folder)


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param(("joblib", "hydra.launcher.n_jobs=2"), marks=needs("hydra_joblib_launcher")),
        pytest.param(("submitit_local",), marks=needs("hydra_submitit_launcher")),
    ],
    ids=lambda launcher: launcher[0],
)
def test_a_launcher_runs_jobs_in_processes_of_their_own(launcher: tuple[str, ...], tmp_path: Path) -> None:
    name, *options = launcher
    rows = sweep(tmp_path, f"hydra/launcher={name}", *options, f"{WEIGHTS}=0.5,1.5")
    expected = {(job, weight, arm) for job, weight in (("0", "0.5"), ("1", "1.5")) for arm in ("base", "proxy")}
    assert {(row["job"], row[WEIGHTS], row["arm"]) for row in rows} == expected
    assert {row["n"] for row in rows} == {"2"}


@needs("hydra_joblib_launcher")
def test_a_job_that_fails_in_a_process_of_its_own_is_named_and_the_others_are_kept(tmp_path: Path) -> None:
    (tmp_path / "sweep" / "1").mkdir(parents=True)
    (tmp_path / "sweep" / "1" / "items").write_text("a file where job 1 wants a folder")
    done = ended(tmp_path, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"{WEIGHTS}=0.5,1.5")
    assert done.returncode == 1
    (said,) = (line for line in done.stderr.splitlines() if line.startswith("proxytune: "))
    assert "sweep/1/items" in said
    assert {(row["job"], row["arm"]) for row in rows_of(tmp_path)} == {("0", "base"), ("0", "proxy")}
    assert (tmp_path / "sweep" / "0" / "results.json").is_file()
    assert "sweep/1/items" in (tmp_path / "sweep" / "sweep.md").read_text()


@needs("hydra_optuna_sweeper")
def test_an_optimiser_gets_the_headline_number(tmp_path: Path) -> None:
    optuna = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1")
    direction = "hydra.sweeper.direction=maximize"
    rows = sweep(tmp_path, *optuna, direction, "headline=proxy", f"{WEIGHTS}=interval(0.5,1.5)")
    scores = {row[WEIGHTS]: float(row["value"]) for row in rows if row["arm"] == "proxy"}
    assert len(scores) == 2
    assert all(0.5 <= float(weight) <= 1.5 for weight in scores)
    best = yaml.safe_load((tmp_path / "sweep" / "optimization_results.yaml").read_text())
    assert best["best_value"] == scores[str(best["best_params"][WEIGHTS])] == max(scores.values()) > 0
