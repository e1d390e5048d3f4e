"""How far a run is: what is noted while it works, and the live table that shows it."""

from __future__ import annotations

import io
import logging
import math
import statistics

import pytest
from rich.console import Console
from rich.live import Live

from proxytune import console, live
from proxytune.progress import ArmProgress, Progress, TaskProgress


def test_mean_and_error_are_those_of_the_items_so_far():
    arm, values = ArmProgress(), [1.0, 0.0, 0.0, 1.0, 0.25]
    arm.add(values[0])
    assert (arm.items, arm.value, arm.stderr) == (1, 1.0, None)
    for value in values[1:]:
        arm.add(value)
    arm.add(None)
    arm.add(math.nan)
    assert arm.items == 7, "items without a score are answered all the same"
    assert arm.value == pytest.approx(statistics.mean(values))
    assert arm.stderr == pytest.approx(statistics.stdev(values) / math.sqrt(len(values)))


def progress() -> Progress:
    """One task done, one half-way, one waiting."""
    tasks = {name: TaskProgress("acc", {"base": ArmProgress(), "proxy": ArmProgress()}, 100) for name in "abc"}
    for name, answered in {"a": 4, "b": 2}.items():
        task = tasks[name]
        task.items, task.answers, task.computed, task.answers_total, task.tokens = 4, 2 * answered, 2 * answered, 8, 300
        task.began, task.ended = 100.0, 110.0
        for arm in task.arms.values():
            for value in [1.0, 0.0, 0.0, 1.0][:answered]:
                arm.add(value)
    tasks["a"].end({"base": (0.5, 0.25)})
    tasks["a"].ended = 110.0
    tasks["b"].ended = None
    return Progress(tasks)


def shown(state: Progress, width: int, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("time.monotonic", lambda: 110.0)
    state.began = 49.0
    screen = Console(file=io.StringIO(), width=width)
    screen.print(live.render(state, width))
    return screen.file.getvalue()  # type: ignore[attr-defined]


def test_the_table_has_items_metric_pace_and_time_left(monkeypatch):
    lines = [line.split() for line in shown(progress(), 100, monkeypatch).splitlines()]
    assert ["4", "of", "4", "2", "of", "4", "waiting"] in lines
    assert ["30", "tokens/s", "30", "tokens/s"] in lines
    assert ["arm", "took", "0:10", "0:10", "left"] in lines
    assert ["base", "50.0", "±", "25.0", "50.0", "±", "50.0", "(2)"] in lines
    assert ["proxy", "failed", "50.0", "±", "50.0", "(2)"] in lines
    assert "1 of 3 tasks done · 12 answers · 1:01" in " ".join(lines[-1])


@pytest.mark.parametrize("width", [30, 40, 60, 100])
def test_no_line_is_wider_than_the_window_and_the_task_at_work_is_always_there(width: int, monkeypatch):
    text = shown(progress(), width, monkeypatch)
    assert all(len(line) <= width for line in text.splitlines())
    assert "50.0 ± 25.0" in text or width < 60
    assert "50.0 ± 50.0 (2)" in text


def test_log_lines_go_above_the_table_and_elsewhere_into_their_stream():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    record = logging.LogRecord("proxytune", logging.INFO, "", 0, "a [bold]line[/bold]", None, None)
    for stream, above in ((Terminal(), True), (io.StringIO(), False)):
        screen, handler = Console(file=io.StringIO(), width=20), console.LogStream(stream)
        with console.showing(Live(console=screen)):
            handler.emit(record)
            with console.aside():
                handler.emit(record)
        handler.emit(record)
        line = "a [bold]line[/bold]\n"
        assert screen.file.getvalue().strip() == line.strip() * above  # type: ignore[attr-defined]
        assert stream.getvalue() == line * (3 - above)


def test_the_table_makes_room_while_models_load_and_is_gone_at_the_end(monkeypatch):
    screen = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(live, "Console", lambda **_: screen)
    with live.display(progress()):
        with console.aside():
            assert not console._showing
            screen.file.write("LOADING")
        assert len(console._showing) == 1
    before, after = screen.file.getvalue().split("LOADING")  # type: ignore[attr-defined]
    assert "1 of 3 tasks done" in before and "1 of 3 tasks done" in after
    erased = "\x1b[2K"
    assert before.rindex(erased) > before.rindex("tasks done") and after.rindex(erased) > after.rindex("tasks done")
