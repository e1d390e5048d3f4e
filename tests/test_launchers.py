"""Hydra's launchers for clusters do real sweeps: SLURM with stand-ins for its commands, Ray on a local cluster."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import psutil
import pytest
from hydra import compose, initialize_config_dir
from test_sweep_plugins import WEIGHTS, needs, sweep

from proxytune.cli import hydra_errors, main
from proxytune.folders import config_dir

SBATCH = (
    f"#!{sys.executable}"
    + """
import os, re, subprocess, sys
array = re.search(r"--array=0-(\\d+)", open(sys.argv[-1]).read())
for task in range(int(array[1]) + 1):
    here = {"JOB_ID": 70 + task, "ARRAY_JOB_ID": 7, "ARRAY_TASK_ID": task, "NTASKS": 1, "JOB_NUM_NODES": 1}
    here |= {"PROCID": 0, "LOCALID": 0, "NODEID": 0}
    environment = os.environ | {f"SLURM_{name}": str(value) for name, value in here.items()}
    subprocess.Popen(["bash", sys.argv[-1]], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print("Submitted batch job 7")
"""
)
SRUN = """#!/usr/bin/env bash
# srun --unbuffered --output FILE --error FILE COMMAND...
exec "${@:6}"
"""
SACCT = """#!/usr/bin/env bash
printf 'JobID|State|NodeList\\n7_0|RUNNING|here\\n7_1|RUNNING|here\\n'
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for SLURM's commands, in a folder on PATH: an array's jobs start at once, on this machine."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "sacct": SACCT}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return folder


def left_running(mark: str) -> list[str]:
    """The command lines of the processes that have `mark` in their environment, this one aside."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and mark in process.environ().values():
                found.append(" ".join(process.cmdline()))
        except psutil.Error:  # it has ended, or is another user's
            continue
    return found


def check_sweep(folder: Path, monkeypatch: pytest.MonkeyPatch, *launcher: str) -> None:
    """A sweep of two jobs gives both their results; when the command has ended, so have all that it began."""
    monkeypatch.setenv("PROXYTUNE_TEST", str(folder))
    rows = sweep(folder, *launcher, f"{WEIGHTS}=0.5,1.5")
    expected = {(job, weight, arm) for job, weight in (("0", "0.5"), ("1", "1.5")) for arm in ("base", "proxy")}
    assert {(row["job"], row[WEIGHTS], row["arm"]) for row in rows} == expected
    assert left_running(str(folder)) == []


@needs("hydra_submitit_launcher")
def test_slurm_runs_each_job_as_an_element_of_an_array(slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    check_sweep(tmp_path, monkeypatch, "hydra/launcher=slurm_gpu", "hydra.launcher.partition=gpu")
    (batch,) = (tmp_path / "sweep" / ".submitit").rglob("*submission.sh")
    asked = {line.removeprefix("#SBATCH ") for line in batch.read_text().splitlines() if line.startswith("#SBATCH ")}
    assert {"--partition=gpu", "--gpus-per-node=1", "--cpus-per-task=8", "--mem=64GB", "--time=240"} <= asked
    assert "--array=0-1%2" in asked


@needs("hydra_submitit_launcher")
def test_without_slurm_a_sweep_ends_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    arguments = ["run", "-m", "miniature=tiny", "seed=0,1", "hydra/launcher=slurm_gpu", "output=sweep"]
    assert main(arguments) == 1
    assert capsys.readouterr().err == (
        "proxytune: hydra/launcher=slurm_gpu needs SLURM, and this machine has no sbatch and no srun: start the sweep "
        "on a node that submits jobs, or give hydra/launcher=submitit_local\n"
    )
    assert not (tmp_path / "sweep").exists()
    looked = ["run", "hydra/launcher=slurm_gpu", "--cfg", "hydra"]  # no cluster is needed for that
    assert main(looked) == 0


@needs("hydra_submitit_launcher")
def test_a_lost_job_is_one_line(tmp_path: Path):
    import submitit

    job = submitit.LocalExecutor(tmp_path).submit(os._exit, 9)
    with pytest.raises(submitit.core.utils.UncompletedJobError) as caught:
        job.result()
    config = composed("hydra/launcher=submitit_local")
    lost = hydra_errors.lost_job(caught.value, config)
    assert str(lost).startswith("hydra/launcher=submitit_local lost a job: Job ")
    assert "has not produced any output" in str(lost) and ".submitit/%j" in str(lost) and "\n" not in str(lost)
    assert hydra_errors.lost_job(ValueError("a bug"), config) is None


@needs("hydra_ray_launcher")
def test_ray_runs_each_job_as_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    none = ("hydra.launcher.ray.remote.num_gpus=0", "hydra.launcher.ray.remote.num_cpus=1")
    check_sweep(tmp_path, monkeypatch, "hydra/launcher=ray_gpu", *none, "+hydra.launcher.ray.init.num_cpus=2")


LAUNCHERS = {"slurm_gpu": "hydra_submitit_launcher", "ray_gpu": "hydra_ray_launcher"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs(plugin)) for name, plugin in LAUNCHERS.items()])
def test_every_shipped_launcher_composes(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    launcher = composed(f"hydra/launcher={name}").hydra.launcher
    assert (launcher.gpus_per_node if name == "slurm_gpu" else launcher.ray.remote.num_gpus) == 1


def test_the_shipped_launchers_are_those_tested():
    assert {path.stem for path in (config_dir() / "hydra" / "launcher").glob("*.yaml")} == set(LAUNCHERS)


def composed(*overrides: str):
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir())):
        return compose("run", ["models=local", "task=gsm8k", *overrides], return_hydra_config=True)


@pytest.mark.parametrize(
    ("launcher", "said"),
    [
        (
            "hydra/launcher=submitit_lokal",
            "unknown choice for hydra/launcher 'submitit_lokal'. Did you mean 'submitit_local'",
        ),
        ("hydra/launcher=ray_gpu", "pip install 'proxytune[ray]'"),
        ("hydra/sweeper=nevergrad", "pip install 'proxytune[sweep]'"),
    ],
)
def test_a_plugin_that_is_missing_is_named_with_how_to_get_it(launcher: str, said: str, tmp_path, monkeypatch, capsys):
    if launcher.endswith("ray_gpu") and importlib.util.find_spec("hydra_plugins.hydra_ray_launcher"):
        pytest.skip("the plugin is installed")
    monkeypatch.chdir(tmp_path)
    assert main(["run", "-m", "miniature=tiny", "seed=0,1", launcher]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
