"""Work in groups of requests that fit into memory."""

from __future__ import annotations

import gc
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch

from proxytune.engines.arms import Arm
from proxytune.engines.requests import GenerateRequest, ScoreRequest
from proxytune.errors import UserError

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

    def without(self, done: Iterable[tuple[int, str]]) -> Job[Request]:
        """This job without the (index, arm name) pairs already answered."""
        return replace(self, arms=tuple(arm for arm in self.arms if (self.index, arm.name) not in done))


class Groups:
    """Takes jobs `size` at a time; halves the size when memory runs out, and remembers it."""

    def __init__(self, size: int) -> None:
        self.size = size

    def run(
        self,
        jobs: Iterable[Job[Request]],
        answer: Callable[[Sequence[Job[Request]]], Iterator[tuple[int, str, Answer]]],
        progress: Progress | None,
    ) -> Iterator[tuple[int, str, Answer]]:
        """Everything `answer(group)` yields. After running out of memory only what is missing is done again."""
        waiting = deque(jobs)
        while waiting:
            group = [waiting.popleft() for _ in range(min(self.size, len(waiting)))]
            left = {job.index: len(job.arms) for job in group}
            done = set()
            try:
                for index, arm, result in answer(group):
                    yield index, arm, result
                    done.add((index, arm))
                    left[index] -= 1
                    if progress is not None and left[index] == 0:
                        progress(1)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(len(group), error)
            else:
                continue
            # Out of the except block the traceback is gone, and with it the tensors of the failed group.
            gc.collect()
            torch.cuda.empty_cache()
            waiting.extendleft(reversed([job.without(done) for job in group if left[job.index]]))

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
