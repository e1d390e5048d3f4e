"""Arguments of the sub-commands that Hydra does not compose: key=value, each key one that is known."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from proxytune.errors import UserError, unknown_name


def pairs(arguments: Sequence[str], keys: Collection[str], command: str) -> Iterator[tuple[str, str]]:
    """(key, value) of each argument. Raises UserError for what is not key=value, and for a key not in `keys`."""
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not value:
            raise UserError(f"cannot read the argument {argument!r} as key=value; see proxytune {command} --help")
        if key not in keys:
            raise unknown_name("key", key, keys)
        yield key, value


def once(arguments: Sequence[str], keys: Collection[str], command: str) -> dict[str, str]:
    """{key: value}. Raises UserError as `pairs` does, and for a key that is given twice."""
    given: dict[str, str] = {}
    for key, value in pairs(arguments, keys, command):
        if key in given:
            raise UserError(f"{key} is given twice: {given[key]} and {value}")
        given[key] = value
    return given
