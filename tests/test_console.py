"""What is shown while a command works, on a terminal and without one."""

import logging
import re
import time

import pytest

from proxytune import console


@pytest.fixture
def short_minutes(monkeypatch, caplog):
    """A hundredth of a second in place of a minute; returns what waits for the next log line."""
    monkeypatch.setattr(console, "MINUTE", 0.01)
    caplog.set_level("INFO")

    def next_line() -> str:
        before = len(caplog.messages)
        while len(caplog.messages) == before:
            time.sleep(0.001)
        return caplog.messages[-1]

    return next_line


def test_without_a_terminal_progress_is_a_line_a_minute(short_minutes, caplog):
    with console.progress_bar("gsm8k", 8) as step:
        assert short_minutes() == "gsm8k: 0 of 8 answers"
        step()
        step()
        short_minutes()
        assert re.fullmatch(r"gsm8k: 2 of 8 answers, about \d+ min left", short_minutes())
    lines = len(caplog.messages)
    time.sleep(0.05)
    assert len(caplog.messages) == lines, "it goes on after the end"
    assert {record.name for record in caplog.records} == {"proxytune.console"}


def test_the_time_left_is_that_of_the_steps_since_the_first_report():
    task = console._Task(done=60, total=100, first=40, began=time.monotonic() - 120, note="loss 0.500")
    assert task.line("steps") == "60 of 100 steps, about 4 min left, loss 0.500"
    assert console._Task(done=40, total=100, first=40).line("steps") == "40 of 100 steps"


def test_each_unfinished_task_has_its_line(short_minutes, caplog):
    with console.progress_bars() as report:
        report("base", 2, 2)
        report("expert", 1, 4, note="loss 1.250")
        short_minutes()
        assert short_minutes() == "expert: 1 of 4 steps, loss 1.250"
    assert not any("base" in line for line in caplog.messages)


def test_on_a_terminal_progress_is_a_bar_for_each_task(capsys, monkeypatch, caplog):
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    with console.progress_bars() as report:
        report("base", 0, 40)
        report("base", 40, 40)
        report("expert", 3, 9, note="loss 1.250")
    shown = capsys.readouterr()
    assert all(text in shown.err for text in ("base", "40/40", "expert", "3/9", "loss 1.250"))
    assert shown.out == "" and caplog.messages == []


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_is_shown_if_not_asked_for(terminal, capsys, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(console, "MINUTE", 0.001)
    monkeypatch.setattr("rich.console.Console.is_terminal", terminal)
    with console.progress_bar("gsm8k", 2, show=False) as step:
        step()
        time.sleep(0.02)
    shown = capsys.readouterr()
    assert (shown.err.strip(), shown.out, caplog.messages) == ("", "", [])


def test_a_quiet_logger_speaks_of_errors_and_is_as_before_afterwards(caplog):
    logger = logging.getLogger("some_library")
    logger.setLevel(logging.INFO)
    with console.quiet_logger("some_library"):
        logger.warning("hidden")
        logger.error("seen")
    logger.info("again")
    assert caplog.messages == ["seen", "again"]
