"""Errors that the user can fix: one clear line, no traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what the user gave: one line that says what is wrong, where, what is allowed and what to do."""


def error_line(error: Exception) -> str:
    """The kind of an error and what it says, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def first_line(error: Exception) -> str:
    """The line of an error that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def unknown_name(kind: str, name: object, allowed: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with the nearest names and the whole list."""
    options = sorted(allowed)
    group = str(name)[: str(name).rfind(".") + 1]
    ends = {option.removeprefix(group): option for option in options}  # what keys share does not make them alike
    near = difflib.get_close_matches(str(name).removeprefix(group), ends, n=1)
    hint = f" Did you mean {ends[near[0]]!r}?" if near else ""
    listing = ", ".join(options) if options else "none"
    return UserError(f"unknown {kind} {name!r}.{hint} Known: {listing}")
