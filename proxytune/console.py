"""What is shown while a command works: bars on a terminal, elsewhere a log line every minute."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, TextIO

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

log = logging.getLogger(__name__)

MINUTE = 60.0


_showing: list[Live | Progress] = []
"""The bars or the live table that a console shows just now, if there are any."""


class LogStream(logging.StreamHandler[TextIO]):
    """A log that ends with its reader: what cannot be written is left out without a traceback.

    On a terminal that shows bars, lines go above them.
    """

    def emit(self, record: logging.LogRecord) -> None:
        if not (_showing and self.stream.isatty()):
            super().emit(record)
            return
        try:
            _showing[-1].console.print(Text(self.format(record)), soft_wrap=True)
        except Exception:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        pass


class LogFile(logging.FileHandler):
    """A log file that may be on a full disk: results that cannot be written fail with a line of their own."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


class Report(Protocol):
    def __call__(self, name: str, done: int, total: int, note: str = "") -> object:
        """`done` of the `total` steps of the task `name` are done; `note` stands after them (such as "loss 1.234")."""


def shows_bars(show: bool | None = None) -> bool:
    """Whether bars are shown; `show` None: if standard error is a terminal or a notebook."""
    console = Console(stderr=True)
    return console.is_terminal or console.is_jupyter if show is None else show


@contextlib.contextmanager
def showing(bars: Live | Progress) -> Iterator[None]:
    """Within it, log lines go through the console that shows `bars`."""
    _showing.append(bars)
    try:
        yield
    finally:
        _showing.remove(bars)


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """Makes room for the bars of other libraries: within it, ours are not shown."""
    hidden = _showing[:]
    _showing.clear()
    for bars in hidden:
        bars.stop()
    try:
        yield
    finally:
        for bars in hidden:
            bars.start()
        _showing.extend(hidden)


@contextlib.contextmanager
def progress_bar(label: str, total: int, show: bool | None = None) -> Iterator[Callable[[], None]]:
    """Yields a function to call after each of `total` answers; `show` as for `progress_bars`."""
    done = 0
    with progress_bars(show, "answers") as report:
        report(label, done, total)

        def step() -> None:
            nonlocal done
            done += 1
            report(label, done, total)

        yield step


@contextlib.contextmanager
def progress_bars(show: bool | None = None, unit: str = "steps") -> Iterator[Report]:
    """Yields a function to call whenever one of several tasks is further; a task is shown from its first report on.

    `show` None: bars if standard error is a terminal or a notebook, otherwise a line in the log every minute for each
    task that is not finished ("base: 20 of 80 steps, about 3 min left"); False: neither.
    """
    if show is None and not shows_bars():
        with _logged_every_minute(unit) as report:
            yield report
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    left = (TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
    shows = shows_bars(show)
    bar = Progress(*columns, *left, console=Console(stderr=True), disable=not shows)
    with bar as progress, showing(bar) if shows else contextlib.nullcontext():
        bars = {}

        def show_bar(name: str, done: int, total: int, note: str = "") -> None:
            if name not in bars:
                bars[name] = progress.add_task(name, note=note)
            progress.update(bars[name], completed=done, total=total, note=note)

        yield show_bar


@dataclass
class _Task:
    done: int
    total: int
    note: str = ""
    first: int = 0
    """Steps that were done at the first report: they do not count for the pace."""
    began: float = field(default_factory=time.monotonic)

    def line(self, unit: str) -> str:
        """Steps done and the time left at the pace so far."""
        steps = self.done - self.first
        pace = (time.monotonic() - self.began) / MINUTE / steps if steps else None
        left = "" if pace is None else f", about {pace * (self.total - self.done):.0f} min left"
        return f"{self.done} of {self.total} {unit}{left}{self.note and ', '}{self.note}"


@contextlib.contextmanager
def _logged_every_minute(unit: str) -> Iterator[Report]:
    tasks: dict[str, _Task] = {}
    over = threading.Event()

    def report(name: str, done: int, total: int, note: str = "") -> None:
        task = tasks.setdefault(name, _Task(done, total, first=done))
        task.done, task.total, task.note = done, total, note

    def speak() -> None:  # in a thread: reports come in bursts, and the first may take many minutes
        while not over.wait(MINUTE):
            for name, task in list(tasks.items()):
                if task.done < task.total:
                    log.info("%s: %s", name, task.line(unit))

    speaker = threading.Thread(target=speak, daemon=True)
    speaker.start()
    try:
        yield report
    finally:
        over.set()
        speaker.join()


@contextlib.contextmanager
def quiet_logger(library: str) -> Iterator[None]:
    """Without the library's log lines below errors."""
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def loading_bars(show: bool | None = None) -> Iterator[None]:
    """With transformers' own bars if `shows_bars(show)`, and without them otherwise."""
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.is_progress_bar_enabled()
    if not shows_bars(show):
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            transformers_logging.enable_progress_bar()
