"""How many threads a CPU gives to small models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from proxytune.models.member import Member

ONE_THREAD = 5_000_000
"""Parameters below which the threads of a CPU cost more time than they save."""


def few_threads(members: Iterable[Member]) -> AbstractContextManager[None]:
    """`one_thread` where all `members` are small and on a CPU."""
    small = all(member.device.type == "cpu" and parameters(member) < ONE_THREAD for member in members)
    return one_thread() if small else nullcontext()


@contextmanager
def one_thread() -> Iterator[None]:
    """The number of threads is restored at the end."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def parameters(member: Member) -> int:
    return sum(weight.numel() for weight in member.model.parameters())
