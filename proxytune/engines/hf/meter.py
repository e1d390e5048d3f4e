"""What came of the drafts of one call of the engine: for the record, never for an answer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Meter:
    """Counts over the branches of a call."""

    passes: int = 0
    """Branches that were read, each as often as it was: rows of the passes of the largest model."""
    drafted: int = 0
    """Tokens of drafts."""
    accepted: int = 0
    """Those that some arm of their branch took."""
