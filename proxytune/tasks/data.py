"""A task's data from JSON lines under a folder instead of the hub."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from datasets import Dataset

from proxytune.errors import UserError
from proxytune.tasks.columns import Columns
from proxytune.validation import shown

Row = dict[str, Any]


class NoLocalData(UserError):
    """A folder of data has nothing for a task."""


@contextmanager
def brought_by_family(task: str, folder: str | Path | None) -> Iterator[None]:
    """While `folder`, which came with the models, is read (None: it did not): an error blames no other key."""
    try:
        yield
    except NoLocalData as error:
        if folder is None:
            raise
        raise UserError(
            f"these models bring their own data, in {folder}, and none for task {task!r}: give other models "
            "(models=...), or task.data_dir=..."
        ) from error


@dataclass(frozen=True)
class JSONLines:
    """A data file that was read, every row checked."""

    path: Path
    sha256: str
    rows: list[Row]
    blank: int
    """Blank lines, which are skipped."""


class LocalSplits(Mapping[str, Dataset]):
    """{split: Dataset} of the JSON-lines files under `folder`, each read when it is first used.

    Rows stay in memory, outside the cache of `datasets`: changed files give changed rows, and nothing is written.
    """

    def __init__(self, folder: Path, files: Mapping[str, str], columns: Columns) -> None:
        self._folder, self._files, self._columns = folder, files, columns
        self._read: dict[str, tuple[JSONLines, Dataset]] = {}

    def __getitem__(self, split: str) -> Dataset:
        return self._split(split)[1]

    def source(self, split: str) -> JSONLines:
        """The file that the split's rows come from."""
        return self._split(split)[0]

    def _split(self, split: str) -> tuple[JSONLines, Dataset]:
        if split not in self._files:
            known = ", ".join(self._files)
            raise UserError(f"task.data_dir: the task names no local file for the split {split!r}, only for {known}")
        if split not in self._read:
            file = read_jsonl(locate(self._folder, self._files[split]), self._columns.of)
            self._read[split] = file, Dataset.from_list(file.rows)
        return self._read[split]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def locate(folder: Path, file: str) -> Path:
    """`folder/file`, or its only excerpt: test.jsonl is also found as test_100.jsonl.

    Raises NoLocalData where there is neither, and UserError for several excerpts.
    """
    path = folder / file
    if path.is_file():
        return path
    found = _excerpts(path)
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"task.data_dir: {path} could be any of {', '.join(p.name for p in found)}: keep one of them")
    raise NoLocalData(f"task.data_dir: there is no file {path}")


def has_file(folder: Path, file: str) -> bool:
    """Whether `locate` finds it (or finds several)."""
    return (folder / file).is_file() or bool(_excerpts(folder / file))


def _excerpts(path: Path) -> list[Path]:
    name = re.compile(rf"{re.escape(path.stem)}_\d+{re.escape(path.suffix)}")
    return [other for other in sorted(path.parent.glob("*")) if name.fullmatch(other.name)]


def read_jsonl(path: Path, check: Callable[[Row, str], Row]) -> JSONLines:
    """What `check(row, where)` makes of each row of a JSON-lines file in UTF-8; blank lines are skipped and counted.

    Raises UserError naming file and line: no such file, no JSON object, a key twice, no rows. What JSON lacks (NaN,
    Infinity) is refused.
    """
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    lines = content.removesuffix(b"\n").split(b"\n")
    rows = [_row(line, f"{path}, line {i}", check) for i, line in enumerate(lines, start=1) if line.strip()]
    if not rows:
        raise UserError(f"{path} has no rows: one JSON object per line is expected")
    return JSONLines(path, hashlib.sha256(content).hexdigest(), rows, blank=len(lines) - len(rows))


def _row(line: bytes, where: str, check: Callable[[Row, str], Row]) -> Row:
    try:
        row = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_object, parse_constant=_refuse)
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8: {error.reason} at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise UserError(f"{where} is a {type(row).__name__}: a JSON object is expected")
    return check(row, where)


def _object(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {shown(twice)} stands twice in one object")
    return row


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")
