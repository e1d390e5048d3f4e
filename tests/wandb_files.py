"""Reads the files that W&B writes offline.

The records are W&B's own protocol buffers; the log around them is LevelDB's: blocks of 32 KiB, and before each part of
a record its checksum (4 bytes), length (2) and kind (1: whole, 2: first, 3: middle, 4: last).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import wandb
from wandb.proto import wandb_internal_pb2 as protocol

BLOCK = 32768


@dataclass
class Logged:
    """What one W&B run file holds."""

    folder: Path
    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    artifacts: dict[str, list[str]] = field(default_factory=dict)
    """Name -> files."""
    exit_code: int | None = None
    """None: the run was not closed."""

    def table(self, key: str) -> list[dict[str, Any]]:
        table = json.loads((self.folder / "files" / self.summary[f"{key}.path"]).read_text(encoding="utf-8"))
        return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]


def logged_in(run_folder: Path) -> list[Logged]:
    """The W&B runs logged in a run's folder, the oldest first."""
    wandb.teardown()  # its service writes the last block when it ends, as it does with the process
    files = sorted(run_folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.parent.name)
    return [read(file) for file in files]


def read(file: Path) -> Logged:
    logged = Logged(file.parent)
    for record in records(file.read_bytes()):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            logged.run = record.run
            logged.config |= _values(record.run.config.update)
        elif kind == "config":
            logged.config |= _values(record.config.update)
        elif kind == "summary":
            logged.summary |= _values(record.summary.update)
        elif kind == "history":
            logged.history.append(_values(record.history.item))
        elif kind == "artifact":
            logged.artifacts[record.artifact.name] = [entry.path for entry in record.artifact.manifest.contents]
        elif kind == "exit":
            logged.exit_code = record.exit.exit_code
    return logged


def records(data: bytes) -> Iterator[Any]:
    """Every whole record; a killed process leaves a part of one at the end."""
    assert data[:4] == b":W&B"
    position, parts = 7, b""
    while position + 7 <= len(data):
        if BLOCK - position % BLOCK < 7:
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4) and position <= len(data):
            record = protocol.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def _values(items: Any) -> dict[str, Any]:
    """Key -> value; the keys of what is nested joined by dots."""
    return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
