"""Times models and rules, also on a GPU, which may still be working when a call returns."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache

import torch

_KEPT = 4096
"""The number of pairs of CUDA events at which the older half, finished long ago, is read."""
_COPIED = 2**26
"""Bytes of the copy that measures memory bandwidth: more than a core's caches hold."""


class Clock:
    """Sums up seconds by key while it is running; costs nothing when stopped."""

    def __init__(self) -> None:
        self.running = False
        self.counts: Counter[Hashable] = Counter()
        """How often each key was timed since the last `read`."""
        self._seconds: dict[Hashable, float] = defaultdict(float)
        self._events: list[tuple[Hashable, torch.cuda.Event, torch.cuda.Event]] = []

    def time(self, key: Hashable, device: torch.device) -> AbstractContextManager[None]:
        """A context manager that adds the time of its body on `device` to that of `key`."""
        if not self.running:
            return nullcontext()
        self.counts[key] += 1
        return self._on_gpu(key, device) if device.type == "cuda" else _Here(self._seconds, key)

    def read(self) -> dict[Hashable, float]:
        """The seconds since the last `read`; waits for the GPUs."""
        self._settle(len(self._events))
        self.counts = Counter()
        seconds, self._seconds = dict(self._seconds), defaultdict(float)
        return seconds

    @contextmanager
    def _on_gpu(self, key: Hashable, device: torch.device) -> Iterator[None]:
        stream = torch.cuda.current_stream(device)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record(stream)
        yield
        end.record(stream)
        self._events.append((key, start, end))
        if len(self._events) > _KEPT:
            self._settle(_KEPT // 2)

    def _settle(self, count: int) -> None:
        """Converts the oldest `count` pairs of events to seconds."""
        for key, start, end in self._events[:count]:
            end.synchronize()
            self._seconds[key] += start.elapsed_time(end) / 1000
        del self._events[:count]


class _Here:
    """Adds the time of its body to `seconds[key]`. A generator would cost three times as much."""

    __slots__ = ("key", "seconds", "start")

    def __init__(self, seconds: dict[Hashable, float], key: Hashable) -> None:
        self.seconds, self.key = seconds, key

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.seconds[self.key] += time.perf_counter() - self.start


@cache
def copy_speed(device: torch.device) -> float | None:
    """Bytes per second that a copy on `device` reads and writes, best of three; None if memory is short."""
    try:
        source = torch.ones(_COPIED, dtype=torch.uint8, device=device)
        target = torch.ones_like(source)
        best = min(_seconds_of_copy(source, target) for _ in range(3))
    except (RuntimeError, MemoryError):  # no room for it
        return None
    return 2 * _COPIED / best if best > 0 else None


def _seconds_of_copy(source: torch.Tensor, target: torch.Tensor) -> float:
    wait = torch.cuda.synchronize if source.device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    target.copy_(source)
    wait()
    return time.perf_counter() - start
