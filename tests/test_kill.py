"""Runs, sweeps and builds of a miniature that are stopped: scripts/kill_test.py, of which these are short rounds."""

import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest


@pytest.fixture
def kill_test(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "scripts")
    import kill_test

    yield kill_test
    del sys.modules["kill_test"], sys.modules["kill_worlds"]


def _trials(kill_test, trials, folder, *which):
    """In a process that nothing else has run in: the script forks, and it marks our functions to see the phases."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
        report = alone.submit(kill_test.run, trials, 0, folder, *which).result()
    assert report.wrong == []
    assert report.recomputed == 0
    return report


def test_killed_runs_lose_no_finished_answer_and_end_with_the_same_bytes(kill_test, tmp_path):
    report = _trials(kill_test, 7, tmp_path)
    died_in = report.died.keys() - {kill_test.TOO_LATE}
    assert len(died_in) >= 3, report.died
    assert 0 < report.kept < 7 * report.total


def test_what_is_said_after_ctrl_c_is_true_and_a_sweep_goes_on_from_there(kill_test, tmp_path):
    report = _trials(kill_test, 6, tmp_path, "sweep", "ctrl-c")
    assert report.told > 0


def test_models_of_the_miniature_that_are_complete_when_its_build_is_stopped_are_kept(kill_test, tmp_path):
    report = _trials(kill_test, 2, tmp_path, "build", "ctrl-c")
    assert report.told > 0
    assert 0 < report.kept < 2 * report.total


PARENT = """
import multiprocessing, time
from proxytune.miniature.schedule import _start_worker

def work():
    _start_worker(None)
    print("at work", flush=True)
    time.sleep(100)

if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=work).start()
"""


def test_a_worker_ends_with_a_parent_that_was_killed(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    command = [sys.executable, str(tmp_path / "parent.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "at work\n"
        parent.kill()
        assert parent.stdout.read() == ""  # the pipe closes when the worker, which has it too, has ended
