"""How many threads a CPU gives to small models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from proxytune.models.member import Member

ONE_THREAD = 5_000_000
"""Parameters below which the threads of a CPU cost more time than they save."""


@contextmanager
def few_threads(members: Iterable[Member]) -> Iterator[None]:
    """One thread where all `members` are small and on a CPU; the number of threads is restored at the end."""
    before = torch.get_num_threads()
    if all(member.device.type == "cpu" and parameters(member) < ONE_THREAD for member in members):
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def parameters(member: Member) -> int:
    return sum(weight.numel() for weight in member.model.parameters())
