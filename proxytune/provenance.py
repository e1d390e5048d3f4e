"""Where a result comes from: code, libraries and machine."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterable
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import proxytune

_LIBRARIES = ("torch", "transformers", "lm-eval", "peft", "datasets", "accelerate", "numpy", "tokenizers")
_DECIDING_ROOMS = ("fusion", "models", "engines", "compat")


def code_facts() -> dict[str, str | None]:
    """The package's version, the commit of its checkout ("-dirty" if changed; None if installed), its source's hash."""
    return {"version": proxytune.__version__, "commit": _commit(), "source": source_hash()}


def library_versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        **{name: found for name in _LIBRARIES if (found := installed_version(name)) is not None},
    }


def machine_facts() -> dict[str, object]:
    """What kind of machine it is, without its name."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory() -> int:
    """Peak memory in bytes: of all GPUs if torch uses any, or else of this process."""
    import torch

    if torch.cuda.is_initialized():
        return sum(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count()))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@lru_cache(maxsize=1)
def source_hash() -> str:
    """Hash of the source files that decide answers: the rooms fusion, models, engines and compat."""
    package = Path(proxytune.__file__).parent
    files = sorted(path for room in _DECIDING_ROOMS for path in (package / room).rglob("*.py"))
    names = (path.relative_to(package).as_posix().encode() for path in files)
    return digest(part for name, path in zip(names, files, strict=True) for part in (name, path.read_bytes()))


@lru_cache(maxsize=1)
def package_hash() -> str:
    """Hash of all code and configurations of this package, which also decide what results are made of the answers."""
    package = Path(proxytune.__file__).parent
    files = sorted(path for kind in ("*.py", "*.yaml") for path in package.rglob(kind))
    return digest(part for path in files for part in (str(path.relative_to(package)).encode(), path.read_bytes()))


@lru_cache(maxsize=1)
def code_version() -> str:
    """Hash of all code that decides answers: ours, torch's and transformers' versions. Stored with each answer."""
    facts = [source_hash(), version("torch"), version("transformers")]
    return digest([json.dumps(facts, separators=(",", ":")).encode()])


def digest(parts: Iterable[bytes]) -> str:
    """SHA-256 of the parts, each with its length, so that no two lists of parts share one."""
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(len(part).to_bytes(8, "big"))
        hashed.update(part)
    return hashed.hexdigest()


def installed_version(package: str) -> str | None:
    """By the package's own metadata, without importing it; None where it is not installed."""
    try:
        return version(package)
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
