"""Folders that are either complete or absent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from proxytune.drafts import cannot_write, discard, draft_of, is_full


def write_once(target: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder of another name, then rename it to `target`; nothing happens where `target` exists.

    Raises UserError when the disk is full.
    """
    if target.exists():
        return
    draft = draft_of(target)
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
