"""Clearing out an answer store: what is damaged, what other code wrote, what is old."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxytune.errors import UserError
from proxytune.experiment.answers.store import AnswerStore, checksum_of
from proxytune.provenance import code_version

_DAY = 24 * 3600.0


@dataclass
class Cleared:
    """How many answers there were and why which of them go; each is counted once, under its first reason."""

    total: int = 0
    damaged: int = 0
    outdated: int = 0
    """Written by another version of this package, torch or transformers: no answers of this one, at best drafts."""
    old: int = 0
    bytes_before: int = 0
    bytes_after: int = 0

    @property
    def gone(self) -> int:
        return self.damaged + self.outdated + self.old


def clear(path: str | Path, older_than: float | None = None, dry_run: bool = False) -> Cleared:
    """Removes what is damaged, outdated or older than `older_than` days (None: of any age), and frees its space.

    With `dry_run` it only counts. Raises UserError if there is no usable store at `path`, or if it stays in use.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"store={path}: there is no answer store")
    AnswerStore(path).close()  # refuses what is none
    cleared = Cleared(bytes_before=_size(path))
    try:
        with closing(sqlite3.connect(path, timeout=60, isolation_level=None)) as db:
            going = _going(db, cleared, None if older_than is None else time.time() - older_than * _DAY)
            if going and not dry_run:
                db.execute("BEGIN IMMEDIATE")
                # Not by rowid: a run may have put the answer anew in the meantime.
                db.executemany("DELETE FROM answers WHERE key IS ? AND checksum IS ? AND written IS ?", going)
                db.execute("DELETE FROM similar WHERE key NOT IN (SELECT key FROM answers)")
                db.execute("COMMIT")
                db.execute("VACUUM")
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.Error as error:
        raise UserError(f"answer store {path}: {error}; if a run uses it, clear it out afterwards") from error
    cleared.bytes_after = _size(path)
    return cleared


def _going(db: sqlite3.Connection, cleared: Cleared, before: float | None) -> list[tuple[Any, ...]]:
    """(key, checksum, time written) of the rows to remove, counted in `cleared`."""
    going = []
    for key, value, checksum, code, written in db.execute("SELECT key, value, checksum, code, written FROM answers"):
        cleared.total += 1
        if not isinstance(value, str) or checksum != checksum_of(key, value):
            cleared.damaged += 1
        elif code != code_version():
            cleared.outdated += 1
        elif before is not None and written < before:
            cleared.old += 1
        else:
            continue
        going.append((key, checksum, written))
    return going


def _size(path: Path) -> int:
    """Bytes of the file and of its write-ahead log."""
    return sum(file.stat().st_size for file in (path, path.with_name(path.name + "-wal")) if file.exists())
