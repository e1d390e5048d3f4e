"""Folders that are either complete or absent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def write_once(target: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder of another name, then rename it to `target`; nothing happens where `target` exists."""
    if target.exists():
        return
    partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        write(partial)
        partial.rename(target)
    except OSError:
        if not target.exists():
            raise  # else another process was faster and wrote the same
    finally:
        shutil.rmtree(partial, ignore_errors=True)
