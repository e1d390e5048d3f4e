"""Reads command lines: key=value arguments, Hydra's flags, and help texts."""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

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
    ("--info", "-i"): "print what Hydra found and stop: all (default), config, defaults, defaults-tree, plugins or "
    "searchpath",
    ("--package", "-p"): "with --cfg: only this part of the configuration",
    ("--config-dir", "-cd"): "another folder of configuration files",
    ("--config-name", "-cn"): "the primary configuration file",
}
"""Hydra's flags; not all of them: --experimental-rerun unpickles a file."""
PRINTED: dict[str, dict[str, Any]] = {
    "--cfg": {"choices": ("job", "hydra", "all")},
    "--info": {"choices": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")}
    | {"nargs": "?", "const": "all"},
}
"""What the flags take that print and stop."""
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
        group = one_of if names[0] in PRINTED else parser
        group.add_argument(*names, **PRINTED.get(names[0], {}), help=meaning)
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


def wants_help(arguments: Sequence[str]) -> bool:
    return not {"-h", "--help"}.isdisjoint(arguments)


def usage(command: str, text: str, keys: Mapping[str, str], needed: Collection[str] = (), *, runs: bool = False) -> str:
    """The help of a command that Hydra does not compose: `keys` (name -> meaning), those not `needed` in brackets.

    With `runs`, folders of runs come before them.
    """
    shown = ["RUN..."] * runs + [f"{key}=..." if key in needed else f"[{key}=...]" for key in keys]
    meanings = {"RUN": "the folder of a run, or of a sweep: all of its jobs"} if runs else {}
    listing = "\n".join(f"  {key:<8} {meaning}" for key, meaning in {**meanings, **keys}.items())
    return f"usage: proxytune {command} {' '.join(shown)}\n\n{text}\n\n{listing}"


def key_values(
    command: str, arguments: Sequence[str], keys: Mapping[str, str], needed: Collection[str] = ()
) -> dict[str, str]:
    """{key: value}; raises UserError for what is not key=value, an unknown key, one given twice, and one missing."""
    given: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not value:
            raise UserError(f"cannot read the argument {argument!r} as key=value; see proxytune {command} --help")
        if key not in keys:
            raise unknown_name("key", key, keys)
        if key in given:
            raise UserError(f"{key} is given twice: {given[key]} and {value}")
        given[key] = value
    for key in needed:
        if key not in given:
            raise UserError(f"{key}=... is missing: {keys[key]}")
    return given


def runs_and_keys(
    command: str, arguments: Sequence[str], keys: Mapping[str, str], needed: Collection[str] = ()
) -> tuple[list[str], dict[str, str]]:
    """The folders of runs, at least one, and all else as `key_values` reads it; a folder's name may have a = in it."""
    runs = [argument for argument in arguments if "=" not in argument or Path(argument).exists()]
    given = key_values(command, [argument for argument in arguments if argument not in runs], keys, needed)
    check_runs(command, runs)
    return runs, given


def check_runs(command: str, runs: Sequence[str]) -> None:
    """Raises UserError where no folder of a run is given."""
    if not runs:
        raise UserError(f"proxytune {command}: no run is given; give the folders of one or several runs")


def default_output(runs: Sequence[str], name: str) -> Path:
    """Where `name`, which is made of these runs, is by default: in the folder of a single one; of several, here."""
    run = Path(runs[0])
    return Path(name) if len(runs) > 1 else (run if run.is_dir() else run.parent) / name
