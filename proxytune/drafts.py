"""Files and folders that are whole or absent: each is drafted under another name and renamed once it is complete."""

from __future__ import annotations

import errno
import glob
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil

from proxytune.errors import UserError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""No space, no quota, over the allowed size of a file."""


@contextmanager
def whole_file(path: Path) -> Iterator[IO[str]]:
    """A UTF-8 file that takes the place of `path` once it is complete and on disk.

    Raises UserError if it cannot be written; `path` is then as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = draft_of(path)
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


def draft_of(path: Path) -> Path:
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
