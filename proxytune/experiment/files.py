"""Result files: written whole or not at all."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from proxytune.drafts import draft_of, whole_file
from proxytune.errors import UserError


def make_output_folder(path: Path) -> None:
    """Makes the folder; raises UserError if no file can be written there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        draft = draft_of(path / "results.json")
        draft.touch()
        draft.unlink()
    except OSError as error:
        raise UserError(f"output={path}: cannot write there ({error.strerror}); choose another folder") from error


def write_json(path: Path, record: Mapping[str, Any]) -> Any:
    """Indented JSON without NaN: undefined numbers are null. Returns what reading the file gives."""
    text = _json(record, indent=2)
    with whole_file(path) as file:
        file.write(text + "\n")
    return json.loads(text)


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with whole_file(path) as file:
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
