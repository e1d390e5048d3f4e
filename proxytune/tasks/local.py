"""A task's data from JSON lines under a folder instead of the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset

from proxytune.errors import UserError


class LocalSplits(Mapping[str, Dataset]):
    """{split: Dataset} of the JSON-lines files under `folder`, each read when it is first asked for.

    Rows stay in memory, outside the cache of `datasets`: changed files give changed rows, and nothing is written.
    """

    def __init__(self, folder: Path, files: Mapping[str, str], columns: Sequence[str]) -> None:
        self._folder, self._files, self._columns = folder, files, columns
        self._read: dict[str, Dataset] = {}

    def __getitem__(self, split: str) -> Dataset:
        if split not in self._files:
            known = ", ".join(self._files)
            raise UserError(f"task.data_dir: the task names no local file for the split {split!r}, only for {known}.")
        if split not in self._read:
            path = locate(self._folder, self._files[split])
            self._read[split] = to_dataset(read_jsonl(path, self._columns), path)
        return self._read[split]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def reader(folder: Path, files: Mapping[str, str], columns: Sequence[str]) -> Callable[..., LocalSplits]:
    """An lm-eval `custom_dataset`, which is called with metadata that says nothing about local files."""

    def read(**_: Any) -> LocalSplits:
        return LocalSplits(folder, files, columns)

    return read


def locate(folder: Path, file: str) -> Path:
    """`folder/file`, or its only excerpt: test.jsonl is also found as test_100.jsonl."""
    path = folder / file
    if path.is_file():
        return path
    found = _excerpts(path)
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"task.data_dir: {path} could be any of {', '.join(p.name for p in found)}; keep one of them.")
    raise UserError(f"task.data_dir: no file {path}.")


def has_file(folder: Path, file: str) -> bool:
    """Whether `locate` finds it (or finds several)."""
    return (folder / file).is_file() or bool(_excerpts(folder / file))


def _excerpts(path: Path) -> list[Path]:
    name = re.compile(rf"{re.escape(path.stem)}_\d+{re.escape(path.suffix)}")
    return [other for other in sorted(path.parent.glob("*")) if name.fullmatch(other.name)]


def read_jsonl(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file (blank lines skipped), each with a value in every one of `columns`.

    Raises UserError naming file and line: no such file, no JSON object, a column missing or null, no rows.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from error
    rows = [_row(line, f"{path}, line {i}", columns) for i, line in enumerate(lines, start=1) if line.strip()]
    if not rows:
        raise UserError(f"{path} has no rows; one JSON object a line is expected.")
    return rows


def _row(line: bytes, where: str, columns: Sequence[str]) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {error}.") from error
    if not isinstance(row, dict):
        raise UserError(f"{where} is a {type(row).__name__}; a JSON object is expected.")
    missing = [column for column in columns if row.get(column) is None]
    if missing:
        raise UserError(f"{where} has no {listing(missing)}; it has {listing(row)}.")
    return row


def listing(names: Iterable[str]) -> str:
    """The names of columns, quoted, for a message."""
    return ", ".join(map(repr, names)) or "nothing"


def to_dataset(rows: list[dict[str, Any]], path: Path) -> Dataset:
    """`rows` as a Dataset; a column must be of one type throughout."""
    names = dict.fromkeys(name for row in rows for name in row)
    try:
        return Dataset.from_dict({name: [row.get(name) for row in rows] for name in names})
    except (pa.ArrowException, UnicodeEncodeError, OverflowError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: its rows do not fit together as a table ({reason}).") from error
