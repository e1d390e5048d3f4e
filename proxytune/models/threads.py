"""The number of CPU threads for small models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from proxytune.models.member import Member

ONE_THREAD = 5_000_000
"""Number of parameters below which several CPU threads cost more time than they save."""


def few_threads(members: Iterable[Member]) -> AbstractContextManager[None]:
    """`one_thread` if all `members` are small and on a CPU."""
    small = all(member.device.type == "cpu" and parameters(member) < ONE_THREAD for member in members)
    return one_thread() if small else nullcontext()


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs its body with one thread and restores the number of threads afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def parameters(member: Member) -> int:
    return sum(weight.numel() for weight in member.model.parameters())
