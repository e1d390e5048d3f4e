"""Progress bars with the time left, on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def bar(label: str, total: int, show: bool | None = None) -> Iterator[Callable[[], None]]:
    """Yields a function to call after each of `total` steps; `show` None: show it if standard error is a terminal."""
    console = Console(file=sys.__stderr__)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    hidden = not console.is_terminal if show is None else not show
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console, disable=hidden) as progress:
        task = progress.add_task(label, total=total)
        yield lambda: progress.advance(task)
