"""Runs logged to W&B online: its own client talks to a stand-in for the server on the loopback interface."""

# ruff: noqa: F811 (fixtures are imported)
from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import wandb
import wandb.apis.public
from wandb_files import logged_in
from wandb_runs import ITEMS, SECRETS, check_summary, data, members, run  # noqa: F401
from wandb_server import serving

from proxytune.experiment.answers import shared
from proxytune.experiment.answers.store import AnswerStore
from proxytune.record import read_record

ONLINE = ("logger.mode=online", "logger.patience=20", "task.names=[miniature_tqa]", "only=[base,tuned,proxy]")


@pytest.fixture
def online(run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`online(url, *overrides)`: one task logged to the server at `url`; the exit status."""
    monkeypatch.setenv("WANDB_API_KEY", SECRETS["WANDB_API_KEY"])

    def call(url: str, *overrides: str) -> int:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        status = run(*ONLINE, *overrides)
        wandb.teardown()  # its service keeps what it knows of the server
        return status

    return call


def test_a_run_is_followed_online_and_a_failing_one_is_closed_as_failed(online, tmp_path: Path) -> None:
    with serving() as server:
        assert online(server.url, "logger.tags=[mine]", "logger.group=july") == 0
        assert online(server.url, "task.data_dir=nowhere", "output=failing") == 1
    good, failed = server.runs.values()
    assert (good.exit_code, failed.exit_code) == (0, 1)
    assert (good.described["groupName"], good.described["tags"]) == ("july", ["mine"])
    assert good.config["arms"]["proxy"]["rule"]["weights"] == 1.0
    check_summary(good, read_record(tmp_path / "out"))
    items = [row["progress/miniature_tqa/proxy/items"] for row in good.history if "progress/answers" in row]
    assert items[0] < items[-1] == ITEMS
    assert any(name.startswith("media/table/results") for name in good.uploads)
    assert any(name.startswith("run-") for name in good.artifacts)
    assert "nowhere" in failed.summary["error"]
    sent = repr([(one.described, one.config, one.summary, one.uploads) for one in server.runs.values()])
    assert SECRETS["WANDB_API_KEY"] not in sent


def test_a_run_that_was_killed_online_goes_on_as_the_same_w_and_b_run(online, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(shared, "BLOCK", 2)
    wandb.teardown()
    with serving() as server:
        child = os.fork()
        if child == 0:
            put = AnswerStore.put
            monkeypatch.setattr(
                AnswerStore, "put", lambda self, answers: (put(self, answers), os.kill(os.getpid(), signal.SIGKILL))
            )
            online(server.url)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        [killed] = server.runs.values()
        assert killed.exit_code is None
        assert online(server.url) == 0
    [(run_id, received)] = server.runs.items()
    assert run_id == (tmp_path / "out/wandb/id.txt").read_text() and received.exit_code == 0
    record = read_record(tmp_path / "out")
    assert record.provenance.timings.answers["miniature_tqa"].from_store > 0
    check_summary(received, record)
    steps = [row["_step"] for row in received.history]
    assert steps == sorted(set(steps))


def test_what_was_logged_offline_is_uploaded_by_wandb_sync(run, tmp_path: Path) -> None:
    assert run("task.names=[miniature_tqa]") == 0
    [logged] = logged_in(tmp_path / "out")
    with serving() as server:
        environment = os.environ | {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": SECRETS["WANDB_API_KEY"]}
        upload = [sys.executable, "-m", "wandb", "sync", str(logged.folder)]
        subprocess.run(upload, env=environment, check=True, capture_output=True, timeout=60)
    [(run_id, received)] = server.runs.items()
    assert (run_id, received.exit_code) == (logged.run.run_id, 0)
    check_summary(received, read_record(tmp_path / "out"))
    assert len(received.history) == len(logged.history)


def test_a_server_that_refuses_costs_no_result(online, tmp_path: Path, capsys) -> None:
    assert online("http://127.0.0.1:9", "logger.patience=1") == 0
    is_logged_offline_instead(tmp_path / "out", capsys.readouterr().out)


def test_a_server_that_never_answers_costs_no_result(online, tmp_path: Path, capsys) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert online(f"http://127.0.0.1:{silent.getsockname()[1]}", "logger.patience=1") == 0
    is_logged_offline_instead(tmp_path / "out", capsys.readouterr().out)


def is_logged_offline_instead(folder: Path, said: str) -> None:
    record = read_record(folder)
    assert record.tasks["miniature_tqa"].arms["base"].n == ITEMS
    assert said.count("W&B fails (mode=online)") == 1
    [logged] = logged_in(folder)
    assert logged.exit_code == 0
    check_summary(logged, record)


def test_a_server_that_dies_midway_costs_no_result(online, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(wandb.apis.public.Api, "_HTTP_TIMEOUT", 1)  # of 19 seconds
    with serving(dies=True) as server:
        assert online(server.url, "logger.upload_patience=1") == 0
        assert server.gone
    assert read_record(tmp_path / "out").tasks["miniature_tqa"].arms["proxy"].n == ITEMS
    [received] = server.runs.values()
    assert received.exit_code is None and not received.history
    assert capsys.readouterr().out.count("the results are not affected") == 1
    assert len(list((tmp_path / "out/wandb").glob("run-*/run-*.wandb"))) == 1, "it is on disk for `wandb sync`"
