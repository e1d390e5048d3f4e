"""Files and folders that are complete or absent: each is written under a temporary name and renamed when complete."""

from __future__ import annotations

import errno
import glob
import json
import math
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from proxytune.errors import UserError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""No space, no quota, over the allowed size of a file."""


@contextmanager
def atomic_write(path: Path, binary: bool = False) -> Iterator[IO[Any]]:
    """A UTF-8 file, or one of bytes, that takes the place of `path` once it is complete and on disk.

    Raises UserError if it cannot be written; `path` is then as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_path(path)
        try:
            with partial.open("wb") if binary else partial.open("w", encoding="utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            _remove(partial)
    except OSError as error:
        raise cannot_write(path, error) from error


def atomic_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Calls `write` with a new folder, which is then renamed to `target`; does nothing if `target` exists.

    Raises UserError if the disk is full.
    """
    if target.exists():
        return
    partial = partial_path(target)
    partial.mkdir(parents=True)
    try:
        write(partial)
        partial.rename(target)
    except Exception as error:
        if isinstance(error, OSError) and target.exists():
            return  # another process was faster and wrote the same
        if _disk_is_full(error):
            raise cannot_write(target, error) from error
        raise
    finally:
        _remove(partial)


def partial_path(path: Path) -> Path:
    """Where this process writes `path` until it is complete: next to it, under a name of its own.

    What processes of this machine that have died left of `path` is removed; other machines may share the folder.
    """
    prefix = f".{path.name}.partial-{socket.gethostname()}-"
    for left in path.parent.glob(f"{glob.escape(prefix)}*"):
        owner = left.name.removeprefix(prefix)
        if owner.isdecimal() and (int(owner) == os.getpid() or not _is_alive(int(owner))):
            _remove(left)
    return path.with_name(f"{prefix}{os.getpid()}")


def _is_alive(process: int) -> bool:
    import psutil

    return psutil.pid_exists(process)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def cannot_write(path: str | Path, error: Exception) -> UserError:
    """The error for a file or folder that cannot be written: why, and what to do."""
    full = "make room on that disk and re-run the same command"
    advice = full if _disk_is_full(error) else "choose another folder, or fix its permissions"
    return UserError(f"cannot write {path} ({getattr(error, 'strerror', None) or error}): {advice}")


def _disk_is_full(error: Exception) -> bool:
    """safetensors only reports it in its message."""
    return getattr(error, "errno", None) in _FULL or any(f"(os error {number})" in str(error) for number in _FULL)


def make_output_folder(path: Path) -> None:
    """Makes the folder; raises UserError if no file can be written there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = partial_path(path / "results.json")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"output={path}: cannot write there ({error.strerror}); choose another folder") from error


def write_text(path: Path, text: str) -> None:
    """The whole text, or the file as it was. Raises UserError as `atomic_write` does."""
    with atomic_write(path) as file:
        file.write(text)


def write_json(path: Path, record: Mapping[str, object]) -> None:
    """Indented JSON without NaN: undefined numbers are null. Raises UserError as `atomic_write` does."""
    write_text(path, _json(record, indent=2) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """One JSON object a line, as `write_json` writes it."""
    with atomic_write(path) as file:
        for row in rows:
            file.write(_json(row) + "\n")


def _json(value: object, indent: int | None = None) -> str:
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False, default=_plain)


def _finite(value: object) -> object:
    """`value` with null for NaN and infinities, which JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _plain(value: object) -> object:
    """Numpy numbers, and whatever else a task's documents hold, as JSON values."""
    import numpy as np

    if isinstance(value, np.generic):
        return _finite(value.item())
    return sorted(value, key=str) if isinstance(value, set) else str(value)
