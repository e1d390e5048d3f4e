"""Folders of proxytune itself: its cache, which it can rebuild, and the configurations that it ships."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """`$PROXYTUNE_CACHE`, or `~/.cache/proxytune` where that is not set or empty: models that proxytune trained by
    itself, answers, notes on trained models."""
    return Path(os.environ.get("PROXYTUNE_CACHE") or "~/.cache/proxytune").expanduser()


def config_dir() -> Path:
    """The folder of configurations: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"
