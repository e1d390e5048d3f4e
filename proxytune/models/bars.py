"""transformers' bars for reading and writing weights: shown where somebody looks on, not in a pipe or a log file."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from rich.console import Console
from transformers.utils import logging as transformers_logging


@contextlib.contextmanager
def loading_bars(show: bool | None = None) -> Iterator[None]:
    """Without transformers' own bars if `show` is False; None: unless standard error is a terminal or a notebook."""
    before = transformers_logging.is_progress_bar_enabled()
    console = Console(file=sys.__stderr__)
    if not (console.is_terminal or console.is_jupyter if show is None else show):
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            transformers_logging.enable_progress_bar()
