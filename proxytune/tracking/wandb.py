"""Weights & Biases: one W&B run for each run. docs/wandb.md lists what is logged, and under which names."""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from proxytune.atomic import write_text
from proxytune.errors import error_line
from proxytune.progress import Progress
from proxytune.record import Record, read_items
from proxytune.reporting import tidy
from proxytune.reporting.frames import frames
from proxytune.tracking import contents
from proxytune.validation import Positive, strict_dataclass

if TYPE_CHECKING:
    import wandb

log = logging.getLogger(__name__)

EVERY = 5.0
"""Seconds between two entries of progress."""
Mode = Literal["online", "offline"]
_Text = Annotated[str, Field(min_length=1)]


@strict_dataclass("logger")
class Wandb:
    """A mapping that says where W&B keeps the run."""

    project: _Text = "proxytune"
    """a project's name"""
    entity: _Text | None = None
    """a user or a team, or null for your own default"""
    group: _Text | None = None
    """a text, or null: the jobs of a sweep are one group"""
    tags: list[_Text] = field(default_factory=list)
    """a list of texts. The experiment's name, if it has one, is added."""
    mode: Mode = "online"
    """online, or offline: everything stays in the run's folder until `wandb sync`"""
    patience: Positive = 30.0
    """a number of seconds above 0 to wait for the server at the start. A run that it does not answer is logged
    offline."""
    upload_patience: Positive = 600.0
    """a number of seconds above 0 to wait for uploads at the end. `wandb sync` uploads what is left."""

    def __post_init__(self) -> None:
        if importlib.util.find_spec("wandb") is None:
            raise ValueError("the package wandb is not installed: pip install 'proxytune[wandb]'")

    def start(self, folder: Path, config: Mapping[str, Any], group: str | None = None) -> WandbTracker:
        """Opens the W&B run that belongs to `folder`: offline if that fails online, and none if that fails too."""
        import wandb

        modes: tuple[Mode, ...] = ("online", "offline") if self.mode == "online" else ("offline",)
        for mode in modes:
            try:
                return WandbTracker(self.open(folder, config, group, mode))
            except Exception as error:
                log.warning("W&B fails (mode=%s): %s", mode, error_line(error))
                wandb.teardown()  # or else the run's id would stay in use
        return WandbTracker(None)

    def open(self, folder: Path, config: Mapping[str, Any], group: str | None, mode: Mode) -> wandb.Run:
        """The open `wandb.Run`; raises what wandb raises."""
        import wandb

        # On a terminal `init` asks for a key that is missing, and waits for it without a limit.
        asks = mode == "online" and sys.stdin is not None and sys.stdin.isatty()
        if asks and not wandb.login(timeout=math.ceil(self.patience)):
            raise PermissionError("no API key: use `wandb login`")
        experiment = config.get("experiment")
        run = wandb.init(
            project=self.project,
            entity=self.entity,
            dir=str(folder),
            id=_run_id(folder),
            resume="allow",
            reinit="create_new",
            name="/".join(folder.absolute().parts[-2:]),
            group=self.group or group,
            tags=[*self.tags, *([experiment] if experiment else [])],
            config=dict(config),
            allow_val_change=True,
            mode=mode,
            settings=self._settings(),
        )
        run.define_metric("progress/*", step_metric="progress/answers", summary="none")
        log.info("%s", place(run))
        return run

    def _settings(self) -> wandb.Settings:
        """No console output, no code and no git remotes are captured."""
        import wandb

        return wandb.Settings(
            silent=True,
            console="off",
            disable_code=True,
            disable_git=True,
            save_code=False,
            init_timeout=self.patience,
            finish_timeout=self.upload_patience,
        )


class WandbTracker:
    """Follows one run. An error of wandb is a warning, and the run continues."""

    def __init__(self, run: wandb.Run | None) -> None:
        """`run` is open; None: nothing is logged."""
        self._run = run
        self._warned = False
        self._noted = 0.0
        self._ended = 0

    def progress(self, progress: Progress) -> None:
        """Logs it every few seconds, and whenever a task has ended."""
        ended = sum(task.ended is not None for task in progress.tasks.values())
        if self._run is None or (ended == self._ended and time.monotonic() - self._noted < EVERY):
            return
        self._noted, self._ended = time.monotonic(), ended
        self._attempt(lambda run: run.log(contents.progress_values(progress)))

    def finish(self, record: Record, folder: Path, status: int = 0) -> None:
        self._close(lambda run: log_results(run, record, folder), status)

    def failed(self, error: str, status: int = 1) -> None:
        self._close(lambda run: run.summary.update({"error": error}), status)

    def _close(self, last: Callable[[wandb.Run], object], status: int) -> None:
        self._attempt(last)
        self._attempt(lambda run: run.finish(exit_code=status), always=True)
        self._run = None

    def _attempt(self, act: Callable[[wandb.Run], object], always: bool = False) -> None:
        """Calls `act` with the W&B run. The first error is a warning; after it, only calls with `always` are made."""
        if self._run is None or (self._warned and not always):
            return
        try:
            act(self._run)
        except Exception as error:
            if not self._warned:
                log.warning(
                    "W&B fails, and nothing more is logged; the results are not affected: %s", error_line(error)
                )
            self._warned = True


def place(run: wandb.Run) -> str:
    """Which W&B run it is, and where."""
    where = f"offline; to upload it: wandb sync {Path(run.dir).parent}" if run.offline else run.url
    return f"W&B run {run.id}, {where}"


def log_results(run: wandb.Run, record: Record, folder: Path) -> None:
    """Everything that a run left in `folder`, into an open `wandb.Run`; raises what wandb raises."""
    import wandb

    run.config.update(contents.facts(record), allow_val_change=True)
    found = frames(folder)
    total = {"cost/total_seconds": record.provenance.timings.total_seconds}
    run.summary.update(contents.summary_values(record) | contents.costs(found) | total)
    artifact = wandb.Artifact(f"run-{run.id}", "run")
    for file in contents.files(folder):
        artifact.add_file(str(file), name=file.relative_to(folder).as_posix())
    run.log_artifact(artifact)
    logged: dict[str, object] = {"results": _table(tidy(record))}
    for name, task in record.tasks.items():
        logged[f"samples/{name}"] = _table(contents.samples(task, read_items(folder, name) or []))
    for name, weights in contents.weights(found).items():
        logged[name] = wandb.Histogram(np_histogram=np.histogram(weights, bins=50))
    run.log(logged)
    run.log({name: wandb.Html(svg, inject=False) for name, svg in contents.figures(found).items()})


def _table(frame: pd.DataFrame) -> wandb.Table:
    import wandb

    most = wandb.Table.MAX_ARTIFACT_ROWS
    if len(frame) > most:
        log.warning("a table of %d rows is cut to its first %d, which is W&B's limit", len(frame), most)
    return wandb.Table(dataframe=frame)


def _run_id(folder: Path) -> str:
    """Kept in the run's folder, so that a run that is started again resumes it; a sweep's agent gives its own."""
    if "WANDB_SWEEP_ID" in os.environ and "WANDB_RUN_ID" in os.environ:
        return os.environ["WANDB_RUN_ID"]
    file = folder / "wandb" / "id.txt"
    if not file.exists():
        write_text(file, secrets.token_hex(8))
    return file.read_text(encoding="utf-8")
