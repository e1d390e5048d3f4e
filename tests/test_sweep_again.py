"""A sweep given again does what is missing: finished jobs are read if all they were made of is the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from proxytune import provenance
from proxytune.cli import main
from proxytune.experiment import runner
from proxytune.record import read_record

Sweep = Callable[..., list[str]]


@pytest.fixture
def sweep(tmp_path: Path, family_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys) -> Sweep:
    """Two jobs over the tiny family; returns the folders of those that were run, not read."""
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"where does the river {i} begin ?", "answer": "the sea"} for i in range(3)]
    _write(rows)
    keys = {"base": "models.base", "antiexpert": "models.antiexpert", "expert:trivia": "+models.experts.trivia"}
    models = [f"{key}.path={family_folders[role]}" for role, key in keys.items()]
    done: list[str] = []
    run = runner.run
    monkeypatch.setattr(runner, "run", lambda *a, **k: done.append(Path(k["output_dir"]).name) or run(*a, **k))

    def call(*more: str, jobs: int = 2) -> list[str]:
        done.clear()
        given = ["task=miniature", "task.names=[miniature_trivia]", "task.data_dir=data", "only=[base,proxy]"]
        swept = ["arms.proxy.rule.weights=0.5,1.5", "output=sweep", "store=null", *more]
        assert main(["run", "-m", "models=local", *models, *given, *swept]) == 0
        assert capsys.readouterr().out.count("(finished before)") == jobs - len(done)
        return [*done]

    return call


def _write(rows: list[dict]) -> None:
    path = Path("data/trivia/test.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_only_what_is_missing_is_run(sweep: Sweep) -> None:
    assert sweep() == ["0", "1"]
    tables = [Path("sweep", name).read_bytes() for name in ("sweep.csv", "sweep.md")]
    written = Path("sweep/0/results.json").stat().st_mtime_ns
    assert sweep() == []
    Path("sweep/1/results.json").unlink()  # as a kill leaves it
    assert sweep() == ["1"]
    assert Path("sweep/0/results.json").stat().st_mtime_ns == written
    assert [Path("sweep", name).read_bytes() for name in ("sweep.csv", "sweep.md")] == tables


def test_arms_of_a_range_have_the_scores_of_jobs(sweep: Sweep) -> None:
    assert sweep() == ["0", "1"]
    jobs = [read_record(f"sweep/{job}").tasks["miniature_trivia"].arms["proxy"] for job in (0, 1)]
    assert sweep("arms.proxy.rule.weights=0.5:1.5:1", "output=arms", jobs=1) == ["0"]
    arms = read_record("arms/0").tasks["miniature_trivia"].arms
    assert [arms[f"proxy[weights={alpha}]"].value for alpha in (0.5, 1.5)] == [job.value for job in jobs]
    assert [arms[f"proxy[weights={alpha}]"].tokens for alpha in (0.5, 1.5)] == [job.tokens for job in jobs]


def test_what_is_made_of_something_else_is_run_again(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sweep("only=[proxy]") == ["0", "1"]
    assert sweep("only=[proxy]", "note=another") == ["0", "1"]
    _write([{"question": "where ?", "answer": "here"}])
    assert sweep("only=[proxy]", "note=another") == ["0", "1"]
    monkeypatch.setattr("proxytune.cli.run_folder.package_hash", lambda: "another")
    assert sweep("only=[proxy]", "note=another") == ["0", "1"]
    assert sweep("only=[proxy]", "note=another") == []
    assert provenance.package_hash() != "another"
