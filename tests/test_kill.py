"""Runs killed with SIGKILL in every phase: scripts/kill_test.py, of which this is a short round."""

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
    del sys.modules["kill_test"]


def test_killed_runs_lose_no_finished_answer_and_end_with_the_same_bytes(kill_test, tmp_path):
    # In a process that nothing else has run in: the script forks, and it marks our functions to see the phases.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
        report = alone.submit(kill_test.run, len(kill_test.PHASES), 0, tmp_path).result()
    assert report.wrong == []
    assert report.recomputed == 0
    died_in = report.died.keys() - {kill_test.TOO_LATE}
    assert len(died_in) >= 3, report.died
    assert 0 < report.kept < len(kill_test.PHASES) * report.total
