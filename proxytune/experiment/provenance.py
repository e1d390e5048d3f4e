"""Where a result comes from: code, libraries, machine and members."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import proxytune
from proxytune.experiment.board import Board
from proxytune.experiment.keys import source_hash
from proxytune.models import Ensemble, FamilySpec

_LIBRARIES = ("torch", "transformers", "lm-eval", "peft", "datasets", "accelerate", "numpy", "scipy", "tokenizers")


class Ledger:
    """What a run notes about itself as it goes: its members, and what took how long."""

    def __init__(self) -> None:
        self.damaged = 0
        self._start = time.perf_counter()
        self._members: dict[str, dict[str, Any]] = {}
        self._seconds: dict[str, dict[str, float]] = {"load_seconds": {}, "task_seconds": {}}
        self._answers: dict[str, dict[str, int]] = {}
        self._batch_sizes: dict[str, int | None] = {}
        """What the engine ended with: less than it was given where memory ran out."""

    @contextmanager
    def time(self, what: str, task: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[what][task] = _since(start)

    def note(self, task: str, family: FamilySpec, board: Board) -> None:
        self._answers[task] = {"computed": board.computed, "from_store": board.read}
        self._batch_sizes[task] = getattr(board.engine, "batch_size", None)
        self._members |= {role: _member(family, board.ensemble, role) for role in board.roles}

    def provenance(self) -> dict[str, Any]:
        """`timings` is all that differs between equal runs."""
        return {
            "code": code_facts(),
            "libraries": library_versions(),
            "machine": machine_facts(),
            "members": dict(sorted(self._members.items())),
            "timings": {
                "total_seconds": _since(self._start),
                **self._seconds,
                "answers": self._answers,
                "batch_size": self._batch_sizes,
                "damaged_store_entries": self.damaged,
            },
        }


def code_facts() -> dict[str, str | None]:
    """The package's version, the commit of its checkout ("-dirty" if changed; None if installed), its source's hash."""
    return {"version": proxytune.__version__, "commit": _commit(), "source": source_hash()}


def library_versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        **{name: v for name in _LIBRARIES if (v := _version(name)) is not None},
    }


def machine_facts() -> dict[str, Any]:
    """What kind of machine it is, without its name."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def _member(family: FamilySpec, ensemble: Ensemble, role: str) -> dict[str, Any]:
    """What the member answers by (`identity`), its number type, and the source it was loaded from."""
    return {
        "identity": ensemble[role].identity,
        "dtype": str(ensemble[role].model.dtype).removeprefix("torch."),
        "source": {name: value for name, value in asdict(family.sources[role]).items() if value is not None},
    }


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 3)


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    package = Path(proxytune.__file__).parent
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    return _git(package, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        run = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()
