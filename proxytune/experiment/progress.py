"""What is shown while a run works: our bars with the time left, on a terminal only, and nobody else's noise."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers.utils import logging as transformers_logging

from proxytune.tasks.quiet import without_log_of


@contextlib.contextmanager
def bar(label: str, total: int, show: bool | None = None) -> Iterator[Callable[[], None]]:
    """Yields a function to call after each of `total` steps; `show` None: show it if standard error is a terminal."""
    console = Console(file=sys.__stderr__)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    hidden = not _shown(console, show)
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console, disable=hidden) as progress:
        task = progress.add_task(label, total=total)
        yield lambda: progress.advance(task)


@contextlib.contextmanager
def loading_bars(show: bool | None = None) -> Iterator[None]:
    """With transformers' own bars for loading weights only where ours would be shown."""
    before = transformers_logging.is_progress_bar_enabled()
    if not _shown(Console(file=sys.__stderr__), show):
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            transformers_logging.enable_progress_bar()


@contextlib.contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """Without lm-eval's log lines and its bars, which are written to standard error whatever it is."""
    with without_log_of("lm_eval"), contextlib.redirect_stderr(io.StringIO()):
        yield


def _shown(console: Console, show: bool | None) -> bool:
    return console.is_terminal if show is None else show
