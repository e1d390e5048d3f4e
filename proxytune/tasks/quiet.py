"""Without the log lines of libraries that speak up where nothing is wrong."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def without_log_of(library: str) -> Iterator[None]:
    """Without the library's log lines below errors."""
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
