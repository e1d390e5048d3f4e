"""Reads command lines: key=value arguments, Hydra's flags among them, and help texts."""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from proxytune.errors import UserError, unknown_name

SWITCHES = {
    ("--help", "-h"): "what the command takes",
    ("--hydra-help",): "Hydra's own flags and groups",
    ("--run", "-r"): "one job, which is the default",
    ("--multirun", "-m"): "a sweep: one job for each combination of comma-separated values",
    ("--resolve",): "with --cfg: references between keys are replaced by their values",
}
VALUED = {
    ("--cfg", "-c"): "print the configuration and stop: job, hydra or all",
    ("--package", "-p"): "with --cfg: only this part of the configuration",
    ("--config-dir", "-cd"): "another folder of configuration files",
    ("--config-name", "-cn"): "the primary configuration file",
}
"""Hydra's flags; not all of them: --experimental-rerun unpickles a file."""
GRAMMAR = set("'\"[]{}(),\\")
"""What Hydra's grammar reads as more than text."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """`overrides`, a list, and the flags, which may stand between them; raises UserError for an unknown flag."""
    try:
        given, unknown = flag_parser().parse_known_intermixed_args(arguments)
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from error
    for flag in unknown:
        raise unknown_name("flag", flag.partition("=")[0], [name for names in (*SWITCHES, *VALUED) for name in names])
    if not given.cfg and (given.resolve or given.package):
        raise UserError("--resolve and --package have no effect without --cfg")
    given.overrides = [_quoted(override) for override in given.overrides]
    return given


def flag_parser() -> argparse.ArgumentParser:
    """The parser of Hydra's flags, which says what they mean."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("overrides", nargs="*", help="key=value")
    one_of = parser.add_mutually_exclusive_group()
    for names, meaning in SWITCHES.items():
        group = parser if "--resolve" in names else one_of
        group.add_argument(*names, action="store_true", help=meaning)
    for names, meaning in VALUED.items():
        group = one_of if "--cfg" in names else parser
        group.add_argument(*names, choices=("job", "hydra", "all") if "--cfg" in names else None, help=meaning)
    return parser


def _quoted(override: str) -> str:
    """Hydra's grammar knows letters beyond ASCII in quotes only; a plain text is quoted here."""
    key, equals, value = override.partition("=")
    plain = value.isprintable() and not GRAMMAR & set(value)
    return f"{key}{equals}'{value}'" if plain and not value.isascii() else override


def help_text(command: str, config_dirs: Sequence[Path]) -> str:
    """`help/<command>.txt`, in which a line `<group>: ...` gets the choices of that group."""

    def choices(line: re.Match[str]) -> str:
        files = {file.stem for folder in config_dirs for file in (folder / line[1]).glob("*.yaml")}
        return f"{line[1]}: {', '.join(sorted(files))}"

    text = (config_dirs[0] / "help" / f"{command}.txt").read_text(encoding="utf-8")
    return re.sub(r"^(\w+): \.\.\.$", choices, text, flags=re.MULTILINE)


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
