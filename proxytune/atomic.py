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

import numpy as np
import psutil
from safetensors import SafetensorError

from proxytune.errors import UserError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""No space, no quota, over the allowed size of a file."""


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[str]]:
    """A UTF-8 file that takes the place of `path` once it is complete and on disk.

    Raises UserError if it cannot be written; `path` is then as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = partial_path(path)
        try:
            with draft.open("w", encoding="utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        finally:
            discard(draft)
    except OSError as error:
        raise cannot_write(path, error) from error


def partial_path(path: Path) -> Path:
    """The name beside `path` under which this process drafts it.

    Drafts of it by processes of this machine that have died are removed; other machines may share the folder.
    """
    ours = f".{path.name}.partial-{socket.gethostname()}-"
    for left in path.parent.glob(f"{glob.escape(ours)}*"):
        owner = left.name.removeprefix(ours)
        if owner.isdecimal() and (int(owner) == os.getpid() or not psutil.pid_exists(int(owner))):
            discard(left)
    return path.with_name(f"{ours}{os.getpid()}")


def discard(draft: Path) -> None:
    """Removes a file or a folder, if it is there."""
    if draft.is_dir():
        shutil.rmtree(draft, ignore_errors=True)
    else:
        draft.unlink(missing_ok=True)


def cannot_write(path: str | Path, error: Exception) -> UserError:
    """The error for a file or folder that cannot be written: why, and what to do."""
    advice = (
        "make room on that disk and give the same command again"
        if is_full(error)
        else "choose another folder, or mend its permissions"
    )
    return UserError(f"cannot write {path} ({getattr(error, 'strerror', None) or error}): {advice}")


def is_full(error: Exception) -> bool:
    """Whether a write failed for want of room; safetensors says so in its message alone."""
    return getattr(error, "errno", None) in _FULL or any(f"(os error {number})" in str(error) for number in _FULL)


def atomic_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder of another name, then rename it to `target`; nothing happens where `target` exists.

    Raises UserError when the disk is full.
    """
    if target.exists():
        return
    draft = partial_path(target)
    draft.mkdir(parents=True)
    try:
        write(draft)
        draft.rename(target)
    except (OSError, SafetensorError) as error:
        if target.exists():
            return  # another process was faster and wrote the same
        if is_full(error):
            raise cannot_write(target, error) from error
        raise
    finally:
        discard(draft)


def make_output_folder(path: Path) -> None:
    """Makes the folder; raises UserError if no file can be written there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        draft = partial_path(path / "results.json")
        draft.touch()
        draft.unlink()
    except OSError as error:
        raise UserError(f"output={path}: cannot write there ({error.strerror}); choose another folder") from error


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Indented JSON without NaN: undefined numbers are null."""
    with atomic_write(path) as file:
        file.write(_json(record, indent=2) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with atomic_write(path) as file:
        for row in rows:
            file.write(_json(row) + "\n")


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False, default=_plain)


def _finite(value: Any) -> Any:
    """The same with null for NaN and infinities, which JSON has not."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _plain(value: Any) -> Any:
    """Numpy numbers, and whatever else a task's documents hold."""
    if isinstance(value, np.generic):
        return _finite(value.item())
    return sorted(value, key=str) if isinstance(value, set) else str(value)
