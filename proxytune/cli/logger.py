"""The dashboard that a run is logged to: it is built from the configuration and learns how the run ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from proxytune.cli.secrets import hidden
from proxytune.tracking import Logger, Tracker


@contextmanager
def tracked(logger: Logger | None, folder: Path, config: Mapping[str, Any]) -> Iterator[Tracker | None]:
    """Begins to log a job. What raises within is logged as a failed run; None: nothing is logged."""
    group = sweep_of(folder) if HydraConfig.get().mode == RunMode.MULTIRUN else None
    tracker = None if logger is None else logger.start(folder, config, group)
    try:
        yield tracker
    except BaseException as error:
        if tracker is not None:
            stopped = isinstance(error, KeyboardInterrupt)
            text = hidden(f"{type(error).__name__}: {error}".removesuffix(": "))
            tracker.failed(text, status=130 if stopped else 1)
        raise


def sweep_of(job: Path) -> str:
    """What the jobs of a sweep have in common: the end of its folder's path."""
    return "/".join(job.absolute().parent.parts[-2:])
