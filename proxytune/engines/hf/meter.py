"""How many drafted tokens were accepted in one call of the engine. Only recorded; no answer depends on it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Meter:
    """Counts over all branches of a call."""

    passes: int = 0
    """The number of times that a branch was read: the rows of all passes of the largest model."""
    drafted: int = 0
    """The number of drafted tokens."""
    accepted: int = 0
    """The number of drafted tokens that some arm of their branch accepted."""
