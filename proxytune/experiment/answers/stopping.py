"""Ctrl-C while answers are computed: the current block is finished and stored first if it is nearly done."""

from __future__ import annotations

import logging
import signal
import threading
import time
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)
NEAR = 30.0
"""Seconds that the block at work may still take for a Ctrl-C to wait for it."""


class Stopping:
    """Within it, the first Ctrl-C waits for a block that is nearly finished; the second stops at once."""

    def __init__(self) -> None:
        self.done = self._total = 0
        """Answers of the block at work that are finished, and all of them."""
        self._start = time.monotonic()
        self._wanted = False
        self._before: Any = None

    def __enter__(self) -> Stopping:
        ours = threading.current_thread() is threading.main_thread()
        if ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def begin(self, total: int) -> None:
        """A block of `total` answers begins."""
        self.done, self._total, self._start = 0, total, time.monotonic()

    def step(self) -> None:
        self.done += 1

    def end(self) -> None:
        """The block is stored; raises KeyboardInterrupt if that was waited for."""
        self.done = self._total = 0
        if self._wanted:
            raise KeyboardInterrupt

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        left = self._seconds_left()
        if self._wanted or left is None or left > NEAR:
            raise KeyboardInterrupt
        self._wanted = True
        log.info("finishing the %d answers at work, about %.0f s; Ctrl-C again stops at once", self._total, left)

    def _seconds_left(self) -> float | None:
        """Of the block at work, at its pace so far; None where there is none yet."""
        if not self.done:
            return None
        return (time.monotonic() - self._start) / self.done * (self._total - self.done)
