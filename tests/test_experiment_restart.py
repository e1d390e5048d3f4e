"""Runs that are killed, started again, run side by side, or find their store damaged: the results do not change."""

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from proxytune.engines.hf import HFEngine, work
from proxytune.experiment import run
from proxytune.experiment.answers import shared
from proxytune.experiment.answers.store import AnswerStore
from proxytune.fusion import MatchKL, Static
from proxytune.models import FamilySpec
from proxytune.record import read_record
from proxytune.reporting.tables import tabulate

TASK = "miniature_trivia"
ITEMS = 12
BLOCK = 4
ARMS = {
    "base": {"model": "base"},
    "tuned": {"model": "tuned"},
    "proxy": {"rule": Static(1.0), "experts": "own"},
    "dynamic": {"rule": MatchKL(), "experts": "own"},
    "joint": {"rule": MatchKL(experts="joint"), "experts": "all"},
}
ANSWERS = ITEMS * len(ARMS)
CHILD = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_experiment_restart import BLOCK, HFEngine, shared, go

world = Path(sys.argv[2])

class Waiting(HFEngine):
    calls = 0

    def generate(self, requests, arms, progress=None):
        self.calls += 1
        for done, answer in enumerate(super().generate(requests, arms, progress)):
            while self.calls == 2 and done == 7 and not (world / "go on").exists():
                time.sleep(0.02)
            yield answer

shared.BLOCK = BLOCK
go(world, "child", Waiting)
"""


def go(world: Path, name: str, engine=HFEngine, store: str = "store.sqlite") -> dict:
    """Runs the experiment of this file over the family and data in `world`, into `world/name`; returns its timings."""
    paths = {path.name: str(path) for path in (world / "family").iterdir()}
    experts, tuned = (
        {name.partition("-")[2]: path for name, path in paths.items() if name.startswith(kind)}
        for kind in ("expert", "tuned")
    )
    record = run(
        FamilySpec(paths["base"], paths["antiexpert"], experts, tuned),
        [TASK],
        ARMS,
        engine,
        output_dir=world / name,
        store_path=world / store,
        data_dir=world / "data",
    )
    return record.provenance.timings.model_dump()


@pytest.fixture
def world(tmp_path, family_folders, monkeypatch) -> Path:
    monkeypatch.setattr(shared, "BLOCK", BLOCK)
    (tmp_path / "family").symlink_to(family_folders["base"].parent)
    (tmp_path / "data" / "trivia").mkdir(parents=True)
    rows = [{"question": f"where does the river {i} begin ?", "answer": "the sea"} for i in range(ITEMS)]
    (tmp_path / "data" / "trivia" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def child(world) -> Iterator[subprocess.Popen]:
    """The experiment in another process, which waits in its second block until there is a file "go on"."""
    arguments = [str(Path(__file__).parent), str(world)]
    with subprocess.Popen([sys.executable, "-c", CHILD, *arguments], stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _finished(store: Path) -> int:
    """Answers in a store that others may be writing."""
    if not store.exists():
        return 0
    try:
        with sqlite3.connect(f"file:{store}?mode=ro", uri=True, timeout=10) as db:
            return db.execute("SELECT COUNT(*) FROM answers").fetchone()[0]
    except sqlite3.OperationalError:
        return 0


def _wait(store: Path, answers: int, child: subprocess.Popen) -> None:
    while _finished(store) < answers:
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.02)


def _results(world: Path, name: str) -> tuple[str, bytes]:
    """All that must be the same whenever and however often a run was started."""
    record = json.loads((world / name / "results.json").read_text())
    del record["provenance"]["timings"]
    return json.dumps(record), (world / name / "items" / f"{TASK}.jsonl").read_bytes()


def test_a_killed_run_starts_again_where_it_stopped_and_ends_with_the_same_bytes(world, child):
    kept = BLOCK * len(ARMS)
    _wait(world / "store.sqlite", kept, child)
    child.kill()
    child.communicate()
    assert _finished(world / "store.sqlite") == kept
    assert not (world / "child" / "results.json").exists()
    assert go(world, "child")["answers"][TASK] == {"computed": ANSWERS - kept, "from_store": kept}
    go(world, "whole", store="other.sqlite")
    assert _results(world, "child") == _results(world, "whole")
    assert sorted(path.name for path in (world / "child").rglob("*")) == ["items", f"{TASK}.jsonl", "results.json"]


def test_requests_that_take_long_are_stored_a_few_at_a_time_and_resumed_so(world, monkeypatch):
    """By the count of parameters and tokens: 4 rows fill a batch, so that blocks of one request are the smallest."""
    engine = partial(HFEngine, batch_size=4)
    monkeypatch.setattr(work, "CPU", 1e5)
    sizes = []
    put = AnswerStore.put

    def stored(self, answers):
        put(self, answers)
        sizes.append(len(answers))
        if len(sizes) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(AnswerStore, "put", stored)
    with pytest.raises(KeyboardInterrupt, match="25 of 60 answers are stored, 0 finished ones are lost"):
        go(world, "stopped", engine)
    assert go(world, "stopped", engine)["answers"][TASK] == {"computed": ANSWERS - 25, "from_store": 25}
    assert sizes == [len(ARMS)] * ITEMS
    go(world, "whole", engine, store="other.sqlite")
    assert _results(world, "stopped") == _results(world, "whole")


def test_two_runs_share_a_store_at_the_same_time(world, child):
    _wait(world / "store.sqlite", BLOCK * len(ARMS), child)
    (world / "go on").touch()
    go(world, "beside")
    assert child.wait() == 0, child.stderr.read()
    assert _finished(world / "store.sqlite") == ANSWERS
    assert go(world, "after")["answers"][TASK]["computed"] == 0
    go(world, "whole", store="other.sqlite")
    whole = _results(world, "whole")
    assert [_results(world, name) == whole for name in ("child", "beside", "after")] == [True] * 3


def test_damaged_answers_are_reported_and_computed_again(world, caplog):
    go(world, "whole")
    with sqlite3.connect(world / "store.sqlite") as db:
        keys = [key for (key,) in db.execute("SELECT key FROM answers ORDER BY key LIMIT 3")]
        db.execute("UPDATE answers SET value = '{}' WHERE key = ?", keys[:1])
        db.execute("UPDATE answers SET value = replace(value, 'text', 'tex') WHERE key = ?", keys[1:2])
        db.execute("UPDATE answers SET checksum = 'x' WHERE key = ?", keys[2:])
    timings = go(world, "again")
    assert timings["damaged_store_entries"] == 3
    assert timings["answers"][TASK] == {"computed": 3, "from_store": ANSWERS - 3}
    assert caplog.text.count("is damaged") == 3
    assert _outputs(world, "again") == _outputs(world, "whole")
    assert go(world, "third")["damaged_store_entries"] == 0


class Allergic(HFEngine):
    """Fails wherever a prompt asks about river 3 or 7 in the company of the arm "proxy"."""

    def generate(self, requests, arms, progress=None):
        texts = [self.ensemble.tokenizer.decode(request.prompt.tokens) for request in requests]
        if any(f"river {i} " in text for i in (3, 7) for text in texts) and any(arm.name == "proxy" for arm in arms):
            raise ZeroDivisionError("no such\nriver")
        return super().generate(requests, arms, progress)


def test_an_item_that_fails_takes_no_other_along_and_is_left_out_of_the_score(world, caplog):
    go(world, "whole", store="other.sqlite")
    timings = go(world, "partly", Allergic)
    assert timings["answers"][TASK] == {"computed": ANSWERS - 2, "from_store": 0}
    record, whole = (json.loads((world / name / "results.json").read_text()) for name in ("partly", "whole"))
    task = record["tasks"][TASK]
    proxy = task["arms"]["proxy"]
    error = "ZeroDivisionError: no such river"
    assert proxy["failed_items"] == {"3": error, "7": error}
    assert (proxy["n"], proxy["n_invalid"], task["n"]) == (ITEMS - 2, 2, ITEMS)
    assert record["failed"] == {TASK: {"proxy": f"2 of {ITEMS} items, {error}"}}
    assert "proxy failed at 2 items, which are left out of its score" in " ".join(
        tabulate(read_record(world / "partly")).remarks
    )
    assert caplog.text.count("failed at 1 of 4 requests") == 2
    others = {name: arm for name, arm in task["arms"].items() if name != "proxy"}
    for name, arm in others.items():
        assert arm["value"] == whole["tasks"][TASK]["arms"][name]["value"]
        assert not arm["failed_items"]
    rows, all_rows = (_rows(world, name) for name in ("partly", "whole"))
    answered = [row["arms"]["proxy"]["exact_match"] for row in all_rows if row["doc_id"] not in (3, 7)]
    assert proxy["value"] == sum(answered) / len(answered)
    for row, other in zip(rows, all_rows, strict=True):
        failed = {"output": None, "answer": None, "exact_match": None, "weights": None, "error": error}
        if row["doc_id"] in (3, 7):
            assert row["arms"]["proxy"] == failed
        else:
            assert row["arms"]["proxy"]["output"] == other["arms"]["proxy"]["output"]

    assert go(world, "mended")["answers"][TASK] == {"computed": 2, "from_store": ANSWERS - 2}
    assert _outputs(world, "mended") == _outputs(world, "whole")


def test_an_error_outside_the_arms_loses_no_answer(world, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("in the statistics")

    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr("proxytune.experiment.runner.task_record", broken)
        go(world, "first")
    assert not (world / "first" / "results.json").exists()
    assert go(world, "first")["answers"][TASK] == {"computed": 0, "from_store": ANSWERS}


def _rows(world: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (world / name / "items" / f"{TASK}.jsonl").read_text().splitlines()]


def _outputs(world: Path, name: str) -> list[dict]:
    return [{arm: said["output"] for arm, said in row["arms"].items()} for row in _rows(world, name)]
