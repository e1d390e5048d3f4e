"""`proxytune doctor`: what proxytune finds on this machine, and what is missing for which extra, on one screen."""

from __future__ import annotations

import platform
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import proxytune
from proxytune.cli.arguments import wants_help
from proxytune.errors import UserError
from proxytune.folders import cache_root
from proxytune.provenance import available_cores, installed_version

LIBRARIES = ("torch", "transformers", "tokenizers", "lm-eval", "peft", "datasets", "hydra-core", "pandas")
NO_EXTRAS = {"dev"}
GIGA = 1e9


def main(arguments: Sequence[str]) -> int:
    """`proxytune doctor`; what is missing is no error: the exit status is 0."""
    if wants_help(arguments):
        print(f"usage: proxytune doctor\n\n{__doc__}")
        return 0
    if arguments:
        raise UserError(f"proxytune doctor takes no arguments, and was given {' '.join(arguments)}")
    for subject, lines in {
        "proxytune": [f"{proxytune.__version__} in {Path(proxytune.__file__).parent}"],
        "python": [f"{platform.python_version()}, {platform.system()} {platform.machine()}"],
        "libraries": list(_libraries()),
        "processor": [f"{available_cores()} cores"],
        "memory": [_memory()],
        "GPUs": list(_gpus()),
        "cache": [_cache(cache_root()), _answers(cache_root() / "answers.sqlite")],
        "hub": list(_hub()),
        "extras": list(_extras()),
    }.items():
        for number, line in enumerate(lines):
            print(f"{'' if number else subject:<10} {line}")
    return 0


def _libraries() -> Iterator[str]:
    """Three on a line; versions are read from the packages' metadata, nothing is imported."""
    found = [f"{name} {installed_version(name) or 'is missing'}" for name in LIBRARIES]
    for start in range(0, len(found), 3):
        yield ", ".join(found[start : start + 3])


def _memory() -> str:
    import psutil

    memory = psutil.virtual_memory()
    return f"{memory.available / GIGA:.1f} of {memory.total / GIGA:.1f} GB available"


def _gpus() -> Iterator[str]:
    """As nvidia-smi lists them; torch, which takes seconds to import, is asked only if there are any."""
    command = ["nvidia-smi", "--query-gpu=name,memory.free,memory.total", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        yield "none (nvidia-smi lists none)"
        return
    for line in listed:
        name, free, total = line.rsplit(", ", 2)
        yield f"{name}, {free} of {total} free"
    if listed and not _torch_sees_gpus():
        yield f"torch {installed_version('torch')} cannot use them: install a build of torch for this CUDA driver"


def _torch_sees_gpus() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


def _cache(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder}: not there yet"
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return f"{folder}: {_size(sum(sizes))}, {_size(shutil.disk_usage(folder).free)} free on this disk"


def _size(size: float) -> str:
    return f"{size / GIGA:.1f} GB" if size >= GIGA else f"{size / 1e6:.1f} MB"


def _answers(path: Path) -> str:
    if not path.is_file():
        return "no answers stored yet"
    try:
        with sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True) as answers:
            ((count,),) = answers.execute("SELECT count(*) FROM answers")
    except sqlite3.Error as error:
        return f"{path.name} cannot be read: {error}"
    return f"{path.name}: {count:,} answers"


def _hub() -> Iterator[str]:
    """What the hub's cache holds, where huggingface_hub puts it, and whether there is a token."""
    try:
        from huggingface_hub import get_token
        from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE
    except ImportError:
        yield "huggingface-hub is missing"
        return
    folders = list(Path(HF_HUB_CACHE).glob("*--*"))
    size = sum(file.stat().st_size for folder in folders for file in folder.glob("blobs/*"))
    models = sum(folder.name.startswith("models--") for folder in folders)
    yield f"{HF_HUB_CACHE}: {models} models, {len(folders) - models} others, {_size(size)}"
    logged = "logged in" if get_token() else "not logged in: gated models need `hf auth login`"
    yield f"{logged}{'; offline, because HF_HUB_OFFLINE is set' if HF_HUB_OFFLINE else ''}"


def _extras() -> Iterator[str]:
    """Each extra, with those of its packages that are not installed."""
    try:
        wanted = requires("proxytune") or []
    except PackageNotFoundError:
        yield "unknown: proxytune is not installed as a package"
        return
    extras: dict[str, list[str]] = {}
    for requirement in wanted:
        if found := re.match(r"([\w.-]+).*extra == ['\"]([\w.-]+)['\"]", requirement):
            extras.setdefault(found[2], []).append(found[1])
    for extra, packages in extras.items():
        if extra in NO_EXTRAS:
            continue
        missing = [package for package in packages if installed_version(package) is None]
        advice = f"without {', '.join(missing)}: pip install 'proxytune[{extra}]'" if missing else "installed"
        yield f"{extra}: {advice}"
