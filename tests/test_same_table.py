"""The default experiment's table does not depend on the number of threads or on the processor's vector instructions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from proxytune.models import threads
from proxytune.models.threads import few_threads

SETTINGS = {
    "plain": {"OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "default"},
    "native": {"OMP_NUM_THREADS": "2"},
}
TASKS = ("miniature_trivia", "miniature_tqa", "miniature_cnn")


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, Path]]:
    """By setting: what a small part of `proxytune run` prints, and its folder."""
    root = tmp_path_factory.mktemp("runs")
    found = {}
    for name, setting in SETTINGS.items():
        env = {key: value for key, value in os.environ.items() if key != "ATEN_CPU_CAPABILITY"}
        env |= {"PROXYTUNE_CACHE": str(root / "cache"), **setting}
        chosen = ["limit=12", f"task.names=[{','.join(TASKS)}]", "store=null", "output=out"]
        command = [sys.executable, "-m", "proxytune", "run", *chosen]
        folder = root / name
        folder.mkdir()
        run = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=True)
        lines = [line for line in run.stdout.splitlines() if not line.startswith(("[20", "Report", "Results"))]
        found[name] = "\n".join(lines), folder / "out"
    return found


def test_two_settings_print_one_table(printed) -> None:
    plain, native = (printed[name][0] for name in SETTINGS)
    assert "tuned_multitask" in plain
    assert plain == native


def test_two_settings_give_the_same_answers(printed) -> None:
    for task in TASKS:
        plain, native = (_answers(printed[name][1] / "items" / f"{task}.jsonl") for name in SETTINGS)
        assert len(plain) == 12
        assert plain == native


def _answers(file: Path) -> list[dict]:
    """By item and arm: the text, or the score where options are chosen from, whose log-probabilities are rounded."""
    rows = [json.loads(line)["arms"] for line in file.read_text().splitlines()]
    return [
        {arm: said["output"] if isinstance(said["output"], str) else said["acc"] for arm, said in row.items()}
        for row in rows
    ]


@pytest.mark.parametrize(("limit", "within"), [(5_000_000, 1), (10, 2)])
def test_small_members_have_one_thread_and_others_all(limit, within, family, monkeypatch) -> None:
    monkeypatch.setattr(threads, "ONE_THREAD", limit)
    set_to = [2]
    monkeypatch.setattr(torch, "get_num_threads", lambda: set_to[-1])
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    with pytest.raises(KeyError), few_threads(family.members.values()):
        assert set_to[-1] == within
        raise KeyError
    assert set_to[-1] == 2
