"""Runs of a tiny family logged to W&B, and what must be there: shared by the tests of W&B."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import save_family
from wandb_files import Logged
from wandb_server import Received

from proxytune import experiment
from proxytune.cli import main
from proxytune.engines.hf import HFEngine
from proxytune.record import Record
from proxytune.tracking import wandb as tracking

SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef" * 2 + "01234567",
    "HF_TOKEN": "hf_" + "Secret0123" * 4,
    "MY_API_KEY": "open-sesame",
}
EXPERTS = ("trivia", "tqa")
ITEMS = 6
LETTERS = [f" {letter}" for letter in "ABCDEFGHIKLMNOPQRSTUVWXYZ"]
"""Of a few tokens each: no choice is the likeliest of all models."""
ENGINE = """
from proxytune.engines.hf import HFEngine

class Keyed(HFEngine):
    def __init__(self, ensemble, api_key, **options):
        assert api_key == "open-sesame"
        super().__init__(ensemble, **options)
"""


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that name a tiny family on disk."""
    paths = save_family(tmp_path_factory.mktemp("family"), EXPERTS, EXPERTS)
    named = [f"+models.experts.{name}.path={paths[f'expert:{name}']}" for name in EXPERTS]
    named += [f"+models.tuned.{name}.path={paths[f'tuned:{name}']}" for name in EXPERTS]
    return [
        "models=local",
        f"models.base.path={paths['base']}",
        f"models.antiexpert.path={paths['antiexpert']}",
        *named,
    ]


@pytest.fixture(scope="module")
def data(members: list[str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of data for two tasks: of the choices in tqa, the tuned model's is right, and the base's is another."""
    folder = tmp_path_factory.mktemp("data")
    rng = random.Random(0)
    candidates = [{"question": f"how many {i} ?", "choices": rng.sample(LETTERS, 4), "label": 0} for i in range(40)]
    _write(folder / "candidates", "tqa", candidates)
    paths = dict(override.lstrip("+").split(".path=") for override in members if ".path=" in override)
    family = {"base": paths["models.base"], "tuned": {"tqa": paths["models.tuned.tqa"]}}
    arms = {"base": {"model": "base"}, "tuned": {"model": "tuned"}}
    out = folder / "out"
    experiment.run(family, ["miniature_tqa"], arms, HFEngine, output_dir=out, data_dir=folder / "candidates")
    chosen = []
    for line in (out / "items/miniature_tqa.jsonl").read_text().splitlines():
        item = json.loads(line)
        base, tuned = (np.argmax(item["arms"][arm]["output"]) for arm in arms)
        if base != tuned:
            chosen.append(candidates[item["doc_id"]] | {"label": int(tuned)})
    assert len(chosen) >= ITEMS, "too many choices alike"
    _write(folder, "tqa", chosen[:ITEMS])
    questions = [{"question": f"where does the river {i} begin ?", "answer": "the sea"} for i in range(ITEMS)]
    _write(folder, "trivia", questions)
    return str(folder)


@pytest.fixture
def run(members: list[str], data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`run(*overrides)`: the tiny family on two tasks, logged offline; its exit status."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracking, "EVERY", 0.0)
    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "user"))
    task = ["task=miniature", "task.names=[miniature_trivia,miniature_tqa]", f"task.data_dir={data}"]
    fixed = [*members, *task, "only=[base,tuned,proxy,dynamic]", "store=answers.sqlite"]

    def call(*overrides: str) -> int:
        logger = [] if "logger=none" in overrides else ["logger=wandb", "logger.mode=offline"]
        return main(["run", *fixed, *logger, "output=out", *overrides])

    return call


def _write(folder: Path, task: str, rows: list[dict[str, Any]]) -> None:
    path = folder / task / "test.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def check_summary(logged: Logged | Received, record: Record) -> None:
    for task_name, task in record.tasks.items():
        for arm_name, arm in task.arms.items():
            for name, value in {task.metric: arm.value, "stderr": arm.stderr, "gap_closed": arm.gap_closed}.items():
                assert logged.summary.get(f"{task_name}/{arm_name}/{name}") == value, (task_name, arm_name, name)
        answers = record.provenance.timings.answers[task_name]
        assert logged.summary[f"cost/{task_name}/computed"] == answers.computed
        assert logged.summary[f"cost/{task_name}/tokens"] == sum(arm.tokens or 0 for arm in task.arms.values())
        for arm_name, cost in record.provenance.timings.costs[task_name].arms.items():
            assert logged.summary[f"cost/{task_name}/{arm_name}/seconds"] == cost.seconds
            assert logged.summary[f"cost/{task_name}/{arm_name}/weights"] == cost.weights > 0
    assert logged.summary["cost/total_seconds"] == record.provenance.timings.total_seconds
