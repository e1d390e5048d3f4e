"""Dashboards that log a run while it works and when it ends. The configuration chooses one with `logger`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from proxytune.progress import Progress
from proxytune.record import Record


class Tracker(Protocol):
    """Follows one run. It raises nothing: a dashboard that cannot be reached costs no result."""

    def progress(self, progress: Progress) -> None:
        """Called after every answer."""

    def finish(self, record: Record, folder: Path, status: int = 0) -> None:
        """The run has ended with this exit status and left these results in `folder`."""

    def failed(self, error: str, status: int = 1) -> None:
        """The run has ended with an error, a text without secrets, and has no results."""


class Logger(Protocol):
    """Makes trackers: a part that the configuration's `logger` describes."""

    def start(self, folder: Path, config: Mapping[str, Any], group: str | None = None) -> Tracker:
        """Starts to log the run in `folder`, or resumes its log. `config` has no secrets. Raises nothing."""
