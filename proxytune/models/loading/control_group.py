"""The memory that a container or a scheduler's job may still use: Linux control groups, of both versions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
UNLIMITED = 1 << 60
"""Version 1 says "no limit" with a number beyond any machine's memory."""


class _Files(NamedTuple):
    limit: str
    used: str
    cache: str
    """Entry of memory.stat: file cache that is given up when memory is asked for."""


_V1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Files("memory.max", "memory.current", "inactive_file")


def room(root: Path = ROOT, own: Path = OWN) -> float:
    """Bytes left to this process by the tightest group it is in; infinite where none limits it."""
    left = [_left(folder, files) for folder, files in _groups(root, own)]
    return min((bytes_left for bytes_left in left if bytes_left is not None), default=math.inf)


def _groups(root: Path, own: Path) -> Iterator[tuple[Path, _Files]]:
    """The folder of every group that limits the memory of this process, the innermost first."""
    lines = own.read_text().splitlines() if own.is_file() else []
    for number, controllers, path in (line.split(":", 2) for line in lines):
        if number == "0":
            top, files = root, _V2
        elif "memory" in controllers.split(","):
            top, files = root / "memory", _V1
        else:
            continue
        folder = top / path.lstrip("/")
        yield from ((group, files) for group in (folder, *folder.parents) if group.is_relative_to(top))


def _left(group: Path, files: _Files) -> int | None:
    try:
        limit, used = (int((group / name).read_text()) for name in (files.limit, files.used))
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # not a group with a limit: there is no file, or it says "max"
        return None
    return None if limit >= UNLIMITED else max(0, limit - used + int(statistics.get(files.cache, 0)))
