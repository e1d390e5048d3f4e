"""Batches of as many requests as fit into memory."""

from __future__ import annotations

import gc
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch

from proxytune.engines.requests import Generated, GenerateRequest, Scored, ScoreRequest
from proxytune.errors import UserError
from proxytune.fusion.arm import Arm

log = logging.getLogger(__name__)

RequestT = TypeVar("RequestT", ScoreRequest, GenerateRequest)
AnswerT = TypeVar("AnswerT", Scored, Generated)
Progress = Callable[[int], object]
"""Called with the number of requests just finished, like `tqdm.update`."""


@dataclass(frozen=True)
class Pending(Generic[RequestT]):
    """A request, its index in the caller's list, and the arms that have not answered it yet."""

    index: int
    request: RequestT
    arms: tuple[Arm, ...]


class Queue(Generic[RequestT]):
    """The waiting requests, in order, and at most `size` requests that have been taken but are not finished."""

    def __init__(self, requests: Iterable[Pending[RequestT]], size: int) -> None:
        self.waiting: deque[Pending[RequestT]] = deque(requests)
        self.taken: dict[int, Pending[RequestT]] = {}
        self.size = size

    @property
    def room(self) -> int:
        """The number of requests that may be taken."""
        return self.size - len(self.taken)

    def take(self) -> list[Pending[RequestT]]:
        """As many waiting requests as there is room for."""
        taken = [self.waiting.popleft() for _ in range(min(self.room, len(self.waiting)))]
        self.taken.update((pending.index, pending) for pending in taken)
        return taken

    def answered(self, index: int, arm: str) -> bool:
        """Records an answer; returns whether all arms have answered the request."""
        pending = self.taken[index]
        left = tuple(other for other in pending.arms if other.name != arm)
        if left:
            self.taken[index] = replace(pending, arms=left)
        else:
            del self.taken[index]
        return not left

    def put_back(self) -> None:
        """Moves unfinished requests back to the front of the queue, without the arms that have answered them."""
        self.waiting.extendleft(reversed(list(self.taken.values())))
        self.taken.clear()


class Batches:
    """Answers requests `size` at a time; halves the size when memory runs out, and remembers it."""

    def __init__(self, size: int) -> None:
        self.size = size

    def run(
        self,
        requests: Iterable[Pending[RequestT]],
        answer: Callable[[Queue[RequestT]], Iterator[tuple[int, str, AnswerT]]],
        progress: Progress | None,
    ) -> Iterator[tuple[int, str, AnswerT]]:
        """Yields what `answer` yields, until no request waits.

        After running out of memory, only missing answers are computed again.
        """
        queue = Queue(requests, self.size)
        while queue.waiting:
            try:
                for index, arm, result in answer(queue):
                    yield index, arm, result
                    if queue.answered(index, arm) and progress is not None:
                        progress(1)
                continue
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(len(queue.taken), error)
            # Outside the except block the traceback is freed, and with it the tensors of the failed batch.
            gc.collect()
            torch.cuda.empty_cache()
            queue.put_back()
            queue.size = self.size

    def _halve(self, tried: int, error: Exception) -> None:
        if tried == 1:
            raise UserError(
                "out of memory with one request at a time: use smaller models or dtypes, shorter prompts or fewer arms"
            ) from error
        self.size = tried // 2
        log.warning("out of memory with %d requests at a time; continuing with %d", tried, self.size)


def is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(sign in str(error) for sign in ("DefaultCPUAllocator", "not enough memory"))
