"""`proxytune runs`: what is listed and shown of runs on disk, and what is cleared out of a store of answers."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest
from rich.console import Console

import proxytune
from proxytune.atomic import write_json
from proxytune.cli import main
from proxytune.engines.requests import Scored
from proxytune.experiment.answers import gc as clearing
from proxytune.experiment.answers.store import AnswerStore
from proxytune.record import Provenance, read_record
from proxytune.reporting import runs

ANSWER = Scored((-1.0,), (True,), ())


def _finished(when: float) -> list[str]:
    """As the table has it."""
    return f"{datetime.fromtimestamp(when):%m-%d %H:%M}".split()


def _arm(value: float | None, rule: object = None) -> dict:
    return {
        "value": value,
        "stderr": 0.1,
        "n_invalid": 0,
        "gap_closed": None,
        "gap_closed_ci": None,
        "undefined": {},
        "rule": rule,
        "weights": {},
    }


def _run(folder: Path, when: float, proxy: float = 0.5) -> None:
    task = {
        "metric": "acc",
        "higher_is_better": True,
        "n": 40,
        "n_truncated": 0,
        "missing": {},
        "references": {"base": "base"},
        "arms": {
            "base": _arm(0.25),
            "mild": _arm(0.375, {"id": "static"}),
            "proxy": _arm(proxy, {"id": "static"}),
            "none": _arm(None, {"id": "static"}),
        },
    }
    folder.mkdir(parents=True)
    record = {"tasks": {"open": task}, "failed": {"other": {"mild": "ValueError: no"}}, "provenance": {}}
    (folder / "results.json").write_text(json.dumps(record))
    os.utime(folder / "results.json", (when, when))


def _listed(folder: Path, width: int = 200) -> list[str]:
    console = Console(width=width, record=True, file=Path(os.devnull).open("w"))  # noqa: SIM115
    runs.list_runs(folder, console)
    return console.export_text().splitlines()


def test_runs_are_listed_by_date_with_their_headline_values(tmp_path: Path):
    _run(tmp_path / "a", when=2e9)
    _run(tmp_path / "deep" / "er", when=1e9, proxy=0.125)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "results.json").write_text("{")
    _run(tmp_path / "lacking", when=1e9)
    record = json.loads((tmp_path / "lacking" / "results.json").read_text())
    del record["tasks"]["open"]["n"]
    (tmp_path / "lacking" / "results.json").write_text(json.dumps(record))
    lines = _listed(tmp_path)
    early, late = (next(i for i, line in enumerate(lines) if name in line) for name in ("deep/er", f"{tmp_path}/a"))
    assert early < late
    assert lines[early].split()[1:] == ["2001-09-09", "open", "40", "25.0", "mild", "37.5"]
    assert lines[late].split()[1:] == ["2033-05-18", "open", "40", "25.0", "proxy", "50.0"]
    assert "Scores between 0 and 1 are in percent." in lines
    assert "failed: mild" in lines[late + 1]
    faults = [line for line in lines if "is not a results.json of proxytune run" in line]
    assert ["broken" in line for line in faults] == [True, False]
    assert faults[1].endswith(
        "lacking/results.json is not a results.json of proxytune run: tasks.open.n: Field required"
    )


@pytest.mark.parametrize(
    ("wanted", "names"),
    [(["tag=first"], "a"), (["task=open"], "ab"), (["seed=0"], "a"), (["models.base.path=x", "seed=1"], "b")],
)
def test_runs_are_chosen_by_tag_task_and_key(wanted: list[str], names: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        _run(Path(name), when=1e9)
        record = json.loads(Path(name, "results.json").read_text())
        tags = ["first"] if name == "a" else []
        record["provenance"] = {"config": {"seed": seed, "tags": tags, "models": {"base": {"path": "x"}}}}
        Path(name, "results.json").write_text(json.dumps(record))
    assert main(["runs", "list", ".", *wanted]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "".join(line.split()[0] for line in lines if line.startswith((" a ", " b "))) == names
    assert main(["runs", "list", ".", "tag=none"]) == 1
    assert capsys.readouterr().err == "proxytune: .: none of 2 finished runs has tag=none\n"


def test_runs_are_sorted_by_a_key(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, limit in {"a": "all", "b": 10, "c": 9}.items():
        _run(Path(name), when=1e9)
        record = json.loads(Path(name, "results.json").read_text())
        record["provenance"] = {"config": {"limit": limit}}
        Path(name, "results.json").write_text(json.dumps(record))
    _run(Path("d"), when=1e8)
    assert main(["runs", "list", ".", "sort=limit"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "".join(line.split()[0] for line in lines if " open " in line) == "cbad"
    assert main(["runs", "list", ".", "sort=limti"]) == 1
    assert capsys.readouterr().err == "proxytune: sort=limti: no run has this key in its configuration\n"


def _given(folder: Path, *overrides: str) -> None:
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {override}\n" for override in overrides))


def test_the_runs_of_a_sweep_are_told_apart_in_80_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for job, weight in enumerate((0.2, 0.6)):
        folder = Path("S", str(job))
        _run(folder, when=1e9 + 60 * job, proxy=weight)
        _given(folder, "miniature=tiny", f"arms.proxy.rule.weights={weight}", "output=S" if job else "output=T")
    lines = [line.split() for line in _listed(Path("S"), width=80)]
    assert ["run", "finished", "weights", "task", "n", "base", "tuned", "best", "fused"] in lines
    first = lines.index(["S/0", *_finished(1e9), "0.2", "open", "40", "25.0", "mild", "37.5"])
    second = lines.index(["S/1", *_finished(1e9 + 60), "0.6", "open", "40", "25.0", "proxy", "60.0"])
    assert second == first + 2  # a row for the failed task is between them
    assert ["weights:", "arms.proxy.rule.weights"] in lines


def test_a_narrow_terminal_hides_nothing_of_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    _run(Path("a-folder-with-a-long-name"), when=1e9)
    _run(Path("b"), when=1e9)
    _given(Path("b"), "arms.dynamic_with_a_long_name.rule.high=1.5")
    wide, narrow = ("".join(_listed(Path(), width)).replace("─", "").replace(" ", "") for width in (200, 50))
    assert sorted(narrow) == sorted(wide)


WEIGHTS = [round(0.1 * step, 1) for step in range(1, 11)]


@pytest.fixture
def forty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Forty runs of a sweep over a weight and a seed, as a run writes them; every tenth has a tag and a note."""
    monkeypatch.chdir(tmp_path)
    for job in range(40):
        folder, weight, seed = Path("sweep", str(job)), WEIGHTS[job % 10], job // 10
        _run(folder, when=1e9 + 60 * job, proxy=0.4 + job / 100)
        marked = {"tags": ["kept"], "note": f"job {job}"} if job % 10 == 0 else {"tags": [], "note": None}
        config = {"seed": seed, "arms": {"proxy": {"rule": {"weights": weight}}}, **marked}
        record = read_record(folder)
        dated = record.model_copy(update={"provenance": Provenance(config=config, seed=seed), "failed": {}})
        write_json(folder / "results.json", dated.model_dump(mode="json"))
        os.utime(folder / "results.json", (1e9 + 60 * job, 1e9 + 60 * job))
        _given(folder, "miniature=tiny", f"arms.proxy.rule.weights={weight}", f"seed={seed}", "output=sweep")
    return Path("sweep")


def test_forty_runs_are_forty_lines_of_80_characters(forty: Path):
    lines = _listed(forty, width=80)
    rows = [line.split() for line in lines if line.strip().startswith("sweep/") and ":" not in line.split()[0]]
    expected = [(f"sweep/{job}", str(WEIGHTS[job % 10]), str(job // 10)) for job in range(40)]
    assert [(row[0], row[3], row[4]) for row in rows] == expected
    assert [row[5] for row in rows[::10]] == ["kept"] * 4
    assert [row[1:3] for row in rows] == [_finished(1e9 + 60 * job) for job in range(40)]
    assert "In all rows: task open, n 40." in lines
    assert [float(row[-1]) for row in rows] == [pytest.approx(100 * (0.4 + job / 100), abs=0.06) for job in range(40)]
    assert len(lines) < 40 + 12 and max(map(len, lines)) <= 80
    assert "sweep/30: job 30" in [line.strip() for line in lines]


def test_forty_runs_are_filtered_sorted_compared_and_reported(forty: Path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["runs", "list", "sweep", "seed=2", "sort=arms.proxy.rule.weights"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(" sweep/")]
    assert [(row[0], row[3]) for row in rows] == [(f"sweep/{20 + step}", str(WEIGHTS[step])) for step in range(10)]
    assert main(["runs", "list", "sweep", "tag=kept", "task=open"]) == 0
    assert capsys.readouterr().out.count("\n sweep/") == 4
    assert main(["report", "sweep", "output=all.html"]) == 0
    assert "Report: all.html" in capsys.readouterr().out and Path("all.html").stat().st_size > 0


def test_keys_that_are_called_like_a_column_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for when, name in ((1e9, "a"), (2e9, "b")):
        _run(Path(name), when)
        _given(Path(name), f"task={name}", f"models.base={name}", f"fusion.proxy.x={name}", f"fusion.other.x={name}")
    heading = next(line for line in _listed(Path(), width=160) if "tuned" in line)
    assert heading.split() == [
        *("run", "finished", "models.base", "proxy.x", "other.x", "task", "n", "base", "tuned", "best", "fused")
    ]


def test_many_different_keys_share_a_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        _run(Path(name), when=1e9)
        _given(Path(name), *(f"key{number}.weights={name}{number}" for number in range(5)), "+added.x=1")
    text = "".join("".join(_listed(Path(), width=160)).split())
    for number in range(5):
        assert f"a{number}" in text and f"b{number}" in text
    assert "otherkeys" in text and "key4.weights=b4" in text and "key0.weights:" not in text
    assert "added" not in text


@pytest.mark.parametrize("notes", ["- [", "7", ""])
def test_damaged_notes_of_a_run_are_said(notes: str, tmp_path: Path):
    for name in ("a", "b"):
        _run(tmp_path / name, when=1e9)
    _given(tmp_path / "b")
    (tmp_path / "b" / ".hydra" / "overrides.yaml").write_text(notes)
    lines = _listed(tmp_path)
    assert any("cannot read" in line and "overrides.yaml" in line for line in lines)
    assert any(f"{tmp_path}/a " in line for line in lines)


def test_a_run_is_shown_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    _run(tmp_path / "a", when=1e9)
    for given in (tmp_path / "a", tmp_path / "a" / "results.json"):
        assert main(["runs", "show", str(given)]) == 0
        assert "50.0 ± 10.0" in capsys.readouterr().out


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Six answers: one damaged, one not even text, one of another version, one 10 days old, two as they should be."""
    path = tmp_path / "answers.sqlite"
    with AnswerStore(path) as answers:
        answers.put(dict.fromkeys(["good", "new", "changed", "bytes", "other", "old"], ANSWER))
    with sqlite3.connect(path) as db:
        db.execute("UPDATE answers SET value = replace(value, '1', '2') WHERE key = 'changed'")
        db.execute("UPDATE answers SET value = X'00FF' WHERE key = 'bytes'")
        db.execute("UPDATE answers SET code = 'x' WHERE key = 'other'")
        db.execute("UPDATE answers SET written = ? WHERE key = 'old'", [time.time() - 10 * 86400])
    return path


def _keys(path: Path) -> set[str]:
    with sqlite3.connect(path) as db:
        return {key for (key,) in db.execute("SELECT key FROM answers")}


@pytest.mark.parametrize(
    ("arguments", "left", "said"),
    [
        ([], {"good", "new", "old"}, "removed: 3 (2 damaged, 1 of another version, 0 old)"),
        (["older_than=9"], {"good", "new"}, "removed: 4 (2 damaged, 1 of another version, 1 old)"),
        (["older_than=11"], {"good", "new", "old"}, "removed: 3 (2 damaged, 1 of another version, 0 old)"),
        (["older_than=0"], set(), "removed: 6 (2 damaged, 1 of another version, 3 old)"),
        (
            ["older_than=9", "dry_run=true"],
            {"good", "new", "old", "changed", "bytes", "other"},
            "would go: 4 (2 damaged, 1 of another version, 1 old)",
        ),
    ],
)
def test_gc_removes_what_is_damaged_outdated_or_old(store: Path, arguments, left, said, capsys):
    assert main(["runs", "gc", f"store={store}", *arguments]) == 0
    assert said in capsys.readouterr().out
    assert _keys(store) == left


def test_gc_frees_space_beside_a_run_that_uses_the_store_and_takes_the_shared_one_by_default(monkeypatch, tmp_path):
    monkeypatch.setenv("PROXYTUNE_CACHE", str(tmp_path))
    path = tmp_path / "answers.sqlite"
    with AnswerStore(path) as answers:
        answers.put({f"k{i}": Scored((-1.0,) * 500, (True,) * 500, ()) for i in range(200)})
        before = path.stat().st_size + path.with_name("answers.sqlite-wal").stat().st_size
        assert main(["runs", "gc", "older_than=0"]) == 0
        assert path.stat().st_size < before / 10
        answers.put({"next": ANSWER})
        assert answers.get(["k1", "next"]) == {"next": ANSWER}


WRITER = """
import sys
from proxytune.engines.requests import Scored
from proxytune.experiment.answers import gc as clearing
from proxytune.experiment.answers.store import AnswerStore
with AnswerStore(sys.argv[1]) as answers:
    for i in range(100):
        answers.put({f"{i}-{j}": Scored((-float(i),) * 20, (True,) * 20, ()) for j in range(20)})
        assert len(answers.get([f"{i}-{j}" for j in range(20)])) == 20
        print(i, flush=True)
"""


def test_runs_are_listed_and_a_store_cleared_while_another_process_writes_it(store: Path, tmp_path: Path, capsys):
    _run(tmp_path / "a", when=1e9)
    with subprocess.Popen([sys.executable, "-c", WRITER, str(store)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "0\n"
        cleared = 0
        while writer.poll() is None and cleared < 8:
            assert main(["runs", "gc", f"store={store}"]) == 0
            assert main(["runs", "list", str(tmp_path)]) == 0
            assert main(["runs", "show", str(tmp_path / "a")]) == 0
            cleared += 1
        writer.communicate()
        assert writer.returncode == 0
    assert capsys.readouterr().err == ""
    assert cleared > 0
    assert len(_keys(store)) == 100 * 20 + 3
    with AnswerStore(store) as answers:
        assert len(answers.get(sorted(_keys(store)))) == 100 * 20 + 3


def test_gc_leaves_an_answer_that_a_run_has_put_anew_while_it_looked(store: Path, monkeypatch):
    def look_slowly(db, cleared, before):
        going = look(db, cleared, before)
        with AnswerStore(store) as answers:
            answers.put({"old": ANSWER})  # the last row: the next one would take its number
        return going

    look = clearing._going
    monkeypatch.setattr(clearing, "_going", look_slowly)
    assert main(["runs", "gc", f"store={store}", "older_than=9"]) == 0
    with AnswerStore(store) as answers:
        assert answers.get(["old"]) == {"old": ANSWER}


MISTAKES = {
    "action": (["lst"], "Did you mean 'list'?"),
    "no run": (["show", "{here}"], "results.json does not exist"),
    "no folder": (["show"], "0 folders"),
    "two folders": (["list", "a", "b"], "2 folders"),
    "no runs": (["list", "{here}"], "no finished run"),
    "not a record": (["show", "{here}/list.json"], "is not a results.json of proxytune run: Input should be an object"),
    "no store": (["gc", "store={here}/none.sqlite"], "there is no answer store"),
    "not a store": (["gc", "store={here}/list.json"], "not a database"),
    "key": (["gc", "older=3"], "Did you mean 'older_than'?"),
    "age": (["gc", "older_than=-1"], "older_than=-1 is not allowed"),
    "no number": (["gc", "older_than=nan"], "older_than=nan is not allowed"),
    "switch": (["gc", "dry_run=yes"], "dry_run=yes is not allowed"),
    "twice": (["gc", "older_than=1", "older_than=2"], "given twice"),
    "no pair": (["gc", "older_than"], "key=value"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "list.json").write_text(json.dumps([1] * 2000))
    arguments, said = MISTAKES[case]
    assert main(["runs", *(argument.format(here=tmp_path) for argument in arguments)]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("proxytune: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("arguments", [["runs", "list", "."], ["runs", "show", "α"], ["table", "paper=liu2024"]])
def test_a_terminal_of_few_characters_is_no_error(arguments: list[str], tmp_path: Path):
    _run(tmp_path / "α", 0)
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(proxytune.__file__).parents[1])}
    command = [sys.executable, "-m", "proxytune", *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "?" in done.stdout


def test_a_reader_that_has_had_enough_is_no_error():
    run = [sys.executable, "-m", "proxytune.cli", "runs", "--help"]
    with subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.wait() == 1
