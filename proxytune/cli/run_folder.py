"""A folder belongs to one run: the same configuration resumes it; another one, or a second process, is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig

from proxytune.atomic import make_output_folder, write_json
from proxytune.cli import secrets
from proxytune.errors import UserError
from proxytune.provenance import library_versions, package_hash
from proxytune.record import ERROR, FILE, Record, read_record
from proxytune.reporting.configurations import deciding, flattened
from proxytune.validation import shown

RUN, LOCK = "run.json", ".lock"
NOTES = {".hydra", "proxytune.log", RUN, LOCK, ERROR}
"""What a folder holds before there are any results."""


def check_folder(folder: Path, config: DictConfig) -> None:
    """Raises UserError if the folder holds the results of another configuration, or the beginnings of these."""
    before, now = _earlier(folder), _deciding(secrets.resolved(config))
    if before is None or before == now:
        return
    raise UserError(f"output={folder} holds another run ({_difference(before, now)}): give output={_free(folder)}")


@contextmanager
def claimed(folder: Path, config: DictConfig) -> Iterator[None]:
    """The folder belongs to this run alone while it lasts. Raises UserError if it is another's."""
    make_output_folder(folder)
    try:
        with FileLock(folder / LOCK, timeout=0):
            check_folder(folder, config)
            (folder / ERROR).unlink(missing_ok=True)
            _note(folder, config)
            yield
            _note(folder, config, finished=_made_by())
    except Timeout as error:
        raise UserError(f"output={folder}: another run is at work there; give output={_free(folder)}") from error


def finished(folder: Path, config: Mapping[str, Any]) -> Record | None:
    """The results of this very configuration, resolved, by this very code; None: there are none, or an arm failed."""
    try:
        noted = json.loads((folder / RUN).read_text(encoding="utf-8"))
        record = read_record(folder)
    except (OSError, ValueError, UserError):
        return None
    same = record.provenance.config == json.loads(json.dumps(config))
    return record if same and noted.get("finished") == _made_by() and not record.failed else None


def note_failure(folder: Path, error: str) -> None:
    """Why a job of a sweep has no results, for the sweep's table: the job may be in another process."""
    with suppress(OSError):
        (folder / ERROR).write_text(secrets.hidden(error) + "\n", encoding="utf-8")


def _note(folder: Path, config: DictConfig, **more: Any) -> None:
    # On a full disk the answers are stored elsewhere, and the results say why they fail.
    with suppress(UserError):
        write_json(folder / RUN, {"config": _deciding(secrets.resolved(config)), **more})


def _made_by() -> dict[str, Any]:
    return {"package": package_hash(), "libraries": library_versions()}


def _deciding(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a configuration that decides the results, as JSON has it."""
    kept = deciding(config)
    kept.pop("experiment", None)  # a file's name, which the record adds
    return json.loads(json.dumps(kept))


def _earlier(folder: Path) -> dict[str, Any] | None:
    """The settings of the folder's run; None if there is none."""
    try:
        if (folder / RUN).exists():
            return _deciding(json.loads((folder / RUN).read_text(encoding="utf-8"))["config"])
        if (folder / FILE).exists():
            noted = json.loads((folder / FILE).read_text(encoding="utf-8"))["provenance"]["config"]
            return _deciding(noted or {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"output={folder} holds results that cannot be read: give output={_free(folder)}") from error
    return None


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    old, new = dict(flattened(before)), dict(flattened(now))
    keys = [key for key in (*old, *(new.keys() - old)) if old.get(key) != new.get(key)]
    told = [f"{key}={shown(old.get(key))} there, {shown(new.get(key))} here" for key in sorted(keys)[:2]]
    return "; ".join([*told, f"and {len(keys) - 2} more"] if len(keys) > 2 else told)


def _free(folder: Path) -> Path:
    return next(free for n in count(2) if not (free := folder.with_name(f"{folder.name}-{n}")).exists())
