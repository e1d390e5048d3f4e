"""A run on a full disk: one line that says what could not be written, nothing corrupted, and the next one goes on."""

from __future__ import annotations

import resource
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from proxytune.experiment.answers.store import AnswerStore
from proxytune.record import read_record


class End(NamedTuple):
    """How a run without room ended, and what the same command did once there was room."""

    status: int
    said: list[str]
    """Its lines, those of the log left out."""
    torn: list[str]
    """Its result files that are not those of a run with room."""
    intact: bool
    """The store is a sound database and every answer in it is readable."""
    kept: int
    found: int
    """Answers that were in the store, and that the next run had from there."""
    same: bool
    """The next run's results are those of a run that always had room, to the byte."""


def in_a_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """kill_worlds forks, which is for a process in which nothing else has run."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
        return alone.submit(work, *arguments).result()


def ends_without_room_for_large_files(folder: Path, sizes: list[int]) -> list[End]:
    """Runs that may write no file of more than so many bytes."""
    world, whole = _world(folder)
    return [_end(world, whole, partial(_allow, size), lambda: None) for size in sizes]


def ends_on_small_disks(folder: Path, sizes: list[int]) -> list[End] | str:
    """Runs whose results go to a disk of so many KiB; a text if no disk can be mounted here."""
    world, whole = _world(folder)
    ends = []
    for size in sizes:
        world.clear()
        world.output.mkdir(exist_ok=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(world.output)]
        try:
            subprocess.run(mount, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            return f"no disk can be mounted here: {getattr(error, 'stderr', error)}"
        larger = ["mount", "-o", "remount,size=10m", str(world.output)]
        try:
            ends.append(_end(world, whole, lambda: None, partial(subprocess.run, larger, check=True)))
        finally:
            subprocess.run(["umount", "--lazy", str(world.output)], check=True)
    return ends


def _world(folder: Path) -> tuple[Any, dict[str, bytes]]:
    """The tiny family with its command, and the results of a run with room."""
    import kill_test
    import kill_worlds

    kill_test.shared.BLOCK = kill_test.BLOCK
    world = kill_worlds.RunWorld(folder)
    world.finish()
    return world, world.results()


def _end(world: Any, whole: dict[str, bytes], limit: Callable[[], object], make_room: Callable[[], object]) -> End:
    world.clear()
    process = world.start(limit)
    process.join()
    said = [line for line in (world.folder / "log").read_text().splitlines() if not line.startswith("[")]
    files = {f"{world.output.name}/{path.name}": path for path in world.output.rglob("*") if path.is_file()}
    complete = whole.keys() & files.keys() - {f"{world.output.name}/results.json"}
    torn = [name for name in complete if files[name].read_bytes() != whole[name]]
    torn += [name for name in files if ".partial-" in name]
    kept, intact = len(world.kept()), _intact(world.store)
    make_room()
    world.finish()
    timings = read_record(world.output).provenance.timings
    found = sum(task.from_store for task in timings.answers.values())
    return End(process.exitcode, said, torn, intact, kept, found, world.results() == whole)


def _allow(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _intact(store: Path) -> bool:
    if not store.exists():
        return True
    with closing(sqlite3.connect(store)) as db:
        sound = db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        tables = db.execute("SELECT name FROM sqlite_master").fetchall()
        keys = [key for (key,) in db.execute("SELECT key FROM answers")] if tables else []
    with AnswerStore(store) as answers:
        return sound and len(answers.get(keys)) == len(keys) and not answers.damaged


def check(ends: list[End]) -> None:
    for end in ends:
        assert end.status == 1, end
        assert len(end.said) == 1, end.said
        assert end.said[0].startswith("proxytune: ")
        assert "make room on" in end.said[0]
        assert end.torn == []
        assert end.intact
        assert end.found == end.kept
        assert end.same


def test_a_run_that_may_write_no_large_file_keeps_what_it_has_and_goes_on(tmp_path):
    ends = in_a_process(ends_without_room_for_large_files, tmp_path, [3_000, 10_000, 60_000])
    check(ends)
    assert "output" in ends[0].said[0]
    assert f"answer store {tmp_path / 'answers.sqlite'}" in ends[1].said[0]
    assert ends[1].kept == 0
    assert f"answer store {tmp_path / 'answers.sqlite'}" in ends[2].said[0]
    assert ends[2].kept > 0


def test_a_run_whose_results_find_no_room_keeps_every_answer(tmp_path):
    ends = in_a_process(ends_on_small_disks, tmp_path, [8, 16, 28, 40])
    if isinstance(ends, str):
        pytest.skip(ends)
    check(ends)
    named = [end.said[0].partition("cannot write ")[2].partition(" (")[0] for end in ends]
    assert len({Path(name).name for name in named}) >= 3, named
    assert [end.kept for end in ends] == sorted(end.kept for end in ends)
