"""Where proxytune keeps what it can make again: models it trained by itself, answers, notes on trained models."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """`$PROXYTUNE_CACHE`, or `~/.cache/proxytune` where that is not set or empty."""
    return Path(os.environ.get("PROXYTUNE_CACHE") or "~/.cache/proxytune").expanduser()
