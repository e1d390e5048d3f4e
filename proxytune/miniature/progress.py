"""How far each training job is, with the time it still needs, as bars on a terminal and as log lines elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from proxytune.miniature.jobs import Job

log = logging.getLogger(__name__)

Report = Callable[[str, int, int], None]
"""Called with (job's name, steps done, steps in all)."""


@contextmanager
def progress_display(jobs: Sequence[Job]) -> Iterator[Report]:
    """Shows the jobs that run ("pretraining base 34% eta 0:00:52") and how many of all are finished."""
    titles = {job.name: job.title for job in jobs}
    console = Console(stderr=True)
    log.info("training %d models of the miniature, once: they stay in the cache", len(jobs))
    columns = (TextColumn("{task.description}"), BarColumn(20), TaskProgressColumn(), "eta", TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        whole = bars.add_task(f"building the miniature: {len(jobs)} models", total=len(jobs))
        shown = {}

        def report(name: str, done: int, total: int) -> None:
            if name not in shown:
                log.info("%s: %d steps", titles[name], total)
                shown[name] = bars.add_task(titles[name], total=total)
            bars.update(shown[name], completed=done)
            if done == total:
                bars.update(shown[name], visible=False)
                bars.advance(whole)

        yield report
