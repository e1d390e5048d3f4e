"""`proxytune sync`: logs finished runs to W&B, whether they were logged before or not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from proxytune.cli.arguments import runs_and_keys, usage, wants_help
from proxytune.cli.logger import sweep_of
from proxytune.errors import UserError
from proxytune.record import Record, read_record
from proxytune.reporting.configurations import hydra_notes

if TYPE_CHECKING:
    from proxytune.tracking.wandb import Wandb

KEYS = {
    "project": "a project's name (default: proxytune)",
    "entity": "a user or a team (default: your own)",
    "group": "a text (default: the jobs of a sweep are one group)",
    "tags": "[TAG,...]",
    "mode": "online (default) or offline",
}


def main(arguments: Sequence[str]) -> int:
    """`proxytune sync RUN... [key=value ...]`; raises UserError for the user's mistakes, and where W&B fails."""
    if wants_help(arguments) or not arguments:
        print(usage("sync", str(__doc__), KEYS, runs=True))
        return 0
    runs, given = runs_and_keys("sync", arguments, KEYS)
    tags = {"tags": _tags(given["tags"])} if "tags" in given else {}
    from proxytune.tracking.wandb import Wandb

    logger = Wandb(**{**given, **tags})
    records = [(Path(run), read_record(run)) for run in runs]
    for run, record in records:
        _sync(logger, run if run.is_dir() else run.parent, record)
    return 0


def _tags(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"cannot read the arguments: tags={text} is not a list [TAG,...]") from error


def _sync(logger: Wandb, folder: Path, record: Record) -> None:
    import wandb

    from proxytune.tracking.wandb import log_results, place

    try:
        run = logger.open(folder, record.provenance.config or {}, _sweep(folder), logger.mode)
        log_results(run, record, folder)
        run.finish(exit_code=1 if record.failed else 0)
    except (wandb.Error, OSError) as error:
        raise UserError(f"{folder} cannot be logged to W&B: {error}; mode=offline needs no server") from error
    print(f"{folder}: {place(run)}")


def _sweep(folder: Path) -> str | None:
    """The sweep that the run was a job of, by Hydra's notes."""
    noted = hydra_notes(folder, "hydra", dict).get("hydra") or {}
    return sweep_of(folder) if noted.get("mode") == "MULTIRUN" else None
