"""What is shown while a command works: bars with the time left on a terminal, log lines elsewhere, no other noise."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

MINUTE = 60.0


@contextlib.contextmanager
def progress_bar(label: str, total: int, show: bool | None = None) -> Iterator[Callable[[], None]]:
    """Yields a function to call after each of `total` steps.

    `show` None: a bar if standard error is a terminal, otherwise a line in the log every minute.
    """
    console = Console(file=sys.__stderr__)
    if show is None and not console.is_terminal:
        with _said_every_minute(label, total) as step:
            yield step
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(
        *columns, TextColumn("left"), TimeRemainingColumn(), console=console, disable=show is False
    ) as progress:
        task = progress.add_task(label, total=total)
        yield lambda: progress.advance(task)


@contextlib.contextmanager
def _said_every_minute(label: str, total: int) -> Iterator[Callable[[], None]]:
    """Yields a function to call after each step. The time left is what the rest would take at the pace so far."""
    done, began, over = 0, time.monotonic(), threading.Event()

    def step() -> None:
        nonlocal done
        done += 1

    def say() -> None:  # in a thread: answers come in bursts, and a first one may take many minutes
        while not over.wait(MINUTE):
            pace = (time.monotonic() - began) / MINUTE / done if done else None
            left = "" if pace is None else f", about {pace * (total - done):.0f} min left"
            log.info("%s: %d of %d answers%s", label, done, total, left)

    speaker = threading.Thread(target=say, daemon=True)
    speaker.start()
    try:
        yield step
    finally:
        over.set()
        speaker.join()


@contextlib.contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """Without lm-eval's log lines and its bars, which are written to standard error whatever it is."""
    with quiet_logger("lm_eval"), contextlib.redirect_stderr(io.StringIO()):
        yield


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
    """Without transformers' own bars if `show` is False; None: unless standard error is a terminal or a notebook."""
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.is_progress_bar_enabled()
    console = Console(file=sys.__stderr__)
    if not (console.is_terminal or console.is_jupyter if show is None else show):
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            transformers_logging.enable_progress_bar()
