"""As many requests at a time as fit into memory."""

from __future__ import annotations

import gc
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch

from proxytune.engines.requests import GenerateRequest, ScoreRequest
from proxytune.errors import UserError
from proxytune.fusion.arm import Arm

logger = logging.getLogger(__name__)

Request = TypeVar("Request", ScoreRequest, GenerateRequest)
Answer = TypeVar("Answer")
Progress = Callable[[int], object]
"""Called with the number of requests just finished, as `tqdm.update` is."""


@dataclass(frozen=True)
class Job(Generic[Request]):
    """A request, its place in the caller's list, and the arms that have yet to answer it."""

    index: int
    request: Request
    arms: tuple[Arm, ...]


class Queue(Generic[Request]):
    """Jobs that wait, in order, and at most `size` that have been taken up and are not finished."""

    def __init__(self, jobs: Iterable[Job[Request]], size: int) -> None:
        self.waiting: deque[Job[Request]] = deque(jobs)
        self.taken: dict[int, Job[Request]] = {}
        self.size = size

    def take(self, at_least: int = 1) -> list[Job[Request]]:
        """As many waiting jobs as there is room for; none while there is room for fewer than `at_least`."""
        room = self.size - len(self.taken)
        jobs = [self.waiting.popleft() for _ in range(min(room, len(self.waiting)))] if room >= at_least else []
        self.taken.update((job.index, job) for job in jobs)
        return jobs

    def answered(self, index: int, arm: str) -> bool:
        """Notes an answer; whether the job is finished by it."""
        job = self.taken[index]
        left = tuple(other for other in job.arms if other.name != arm)
        if left:
            self.taken[index] = replace(job, arms=left)
        else:
            del self.taken[index]
        return not left

    def put_back(self) -> None:
        """What was taken and is not finished waits again, as the first, without the arms that have answered."""
        self.waiting.extendleft(reversed(list(self.taken.values())))
        self.taken.clear()


class Batches:
    """Has jobs answered `size` at a time; halves the size when memory runs out, and remembers it."""

    def __init__(self, size: int) -> None:
        self.size = size

    def run(
        self,
        jobs: Iterable[Job[Request]],
        answer: Callable[[Queue[Request]], Iterator[tuple[int, str, Answer]]],
        progress: Progress | None,
    ) -> Iterator[tuple[int, str, Answer]]:
        """What `answer` yields until no job waits. After running out of memory only what is missing is done again."""
        queue = Queue(jobs, self.size)
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
            # Out of the except block the traceback is gone, and with it the tensors of the failed batch.
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
        logger.warning("out of memory with %d requests at a time; going on with %d", tried, self.size)


def is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(sign in str(error) for sign in ("DefaultCPUAllocator", "not enough memory"))
