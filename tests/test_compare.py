"""`proxytune compare`: differing keys first, then paired differences over the items that both runs judged."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from proxytune.cli import main
from proxytune.record import ArmRecord, Provenance, Record, TaskRecord
from proxytune.reporting.compare import difference

SCORES = {"a": [1.0, 0.0, 0.0, 1.0], "b": [1.0, 1.0, 0.0, 1.0]}


def write_run(folder: Path, scores: list[float], seed: int = 0, task: str = "t", prompt: str = "question") -> None:
    """A run of one task and one arm in `folder`."""
    arm = ArmRecord(value=sum(scores) / len(scores), n=len(scores))
    tasks = {task: TaskRecord(metric="acc", higher_is_better=True, n=len(scores), arms={"proxy": arm})}
    config = {"seed": seed, "output": str(folder), "task": {"names": [task]}}
    (folder / "items").mkdir(parents=True)
    (folder / "results.json").write_text(Record(tasks=tasks, provenance=Provenance(config=config)).model_dump_json())
    rows = [{"doc_id": i, "prompt": f"{prompt} {i}", "arms": {"proxy": {"acc": s}}} for i, s in enumerate(scores)]
    (folder / "items" / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows(scores: dict[str, float | None], **more: object) -> dict[str, dict]:
    return {item: {"arms": {"proxy": {"acc": score}}, **more} for item, score in scores.items()}


def test_the_difference_is_paired_over_the_items_of_both_runs() -> None:
    task = TaskRecord(metric="acc", higher_is_better=True, n=3, arms={"proxy": ArmRecord(value=0.5, n=3)})
    found = difference(task, rows({"1": 1.0, "2": 0.0, "3": 0.5}), rows({"1": 0.0, "2": 0.0, "4": 1.0}), "proxy")
    assert (found.value, found.n) == (-0.5, 2)
    assert found.stderr == pytest.approx(math.sqrt(0.5) / math.sqrt(2))  # standard deviation of -1 and 0, over root 2
    assert difference(task, rows({"1": 1.0}), rows({"2": 1.0}), "proxy").value is None


def test_where_no_pair_differs_the_interval_is_agresti_and_mins() -> None:
    task = TaskRecord(metric="acc", higher_is_better=True, n=4, arms={"proxy": ArmRecord(value=1.0, n=4)})
    same = rows(dict.fromkeys("abcd", 1.0))
    found = difference(task, same, same, "proxy")
    assert (found.value, found.stderr, found.stderr_method) == (0.0, pytest.approx(1 / 6), "agresti-min")


def test_items_that_do_not_say_their_group_have_no_error() -> None:
    task = TaskRecord(
        metric="acc", higher_is_better=True, n=2, grouped_by="subject", arms={"proxy": ArmRecord(value=0.5, n=2)}
    )
    found = difference(task, rows({"1": 1.0, "2": 0.0}), rows({"1": 0.0, "2": 0.0}), "proxy")
    assert (found.value, found.stderr) == (-0.5, None)


def test_two_runs_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    for seed, (name, scores) in enumerate(SCORES.items()):
        write_run(Path(name), scores, seed)
    assert main(["compare", "a", "b"]) == 0
    told = capsys.readouterr().out
    words = " ".join(told.split())
    assert "seed 0 1" in words
    assert "output" not in words
    # One of four items is better: mean 0.25, standard error 0.5 / 2 = 0.25, times 1.96 = 0.49.
    assert "proxy 50.0 75.0 +25.0 [-24.0, +74.0] 4" in words
    assert told.index("seed") < told.index("proxy")


def test_items_with_other_prompts_are_other_items(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    write_run(Path("a"), SCORES["a"])
    write_run(Path("b"), SCORES["b"], prompt="other")
    assert main(["compare", "a", "b"]) == 0
    assert "proxy 50.0 75.0 – 0" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "said"), [(["a"], "at least 2 are needed"), (["a", "none"], "none"), (["a", "c"], "no task and arm")]
)
def test_a_mistake_is_one_line(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    write_run(Path("a"), SCORES["a"])
    write_run(Path("c"), SCORES["b"], task="other")
    assert main(["compare", *arguments]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
