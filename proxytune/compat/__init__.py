"""Every private or undocumented name of a dependency that proxytune uses: one module per dependency, each name once.

A module lists its names in `NAMES`, with the reason, and wraps them under plain names. Other rooms import those.
Methods that a class of ours overrides stay in that class and are listed here. `tests/test_compat.py` names the first
that a new release of a dependency lacks, and refuses private names of dependencies anywhere else.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Name:
    """A name that its package may change in any release."""

    where: str
    """The module, or "module:Class"."""
    name: str
    why: str
    overridden: bool = False
    """A class of ours defines it in place of the package's; the package must keep using it."""
