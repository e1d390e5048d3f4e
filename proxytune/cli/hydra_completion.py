"""Tab completion: `eval "$(proxytune --shell-completion install=bash)"`, by Hydra's own plugins for each shell."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence

from proxytune.cli.arguments import SWITCHES, VALUED, flag_parser, key_values
from proxytune.cli.hydra_errors import COMPOSING, one_line
from proxytune.compat.hydra import application
from proxytune.errors import UserError
from proxytune.folders import config_dir

FLAG = "--shell-completion"
KEYS = {
    "install": "a shell (bash, fish or zsh): prints what sets up completion in it",
    "uninstall": "a shell: prints what ends it",
    "query": "a shell: prints how the line in COMP_LINE can go on",
}


def main(arguments: Sequence[str], commands: Iterable[str]) -> int:
    """`proxytune --shell-completion install=SHELL`; raises UserError for the user's mistakes."""
    given = key_values(FLAG, arguments, KEYS)
    if len(given) != 1:
        raise UserError(f"{FLAG} takes one of install=SHELL, uninstall=SHELL and query=SHELL")
    ((key, shell),) = given.items()
    if key == "query":
        _query(shell, commands)
        return 0
    try:
        with application([config_dir()], lambda *_: None) as hydra:
            hydra.shell_completion("run", [f"{key}={shell}"])
    except COMPOSING as error:
        raise one_line(error) from error
    return 0


def _query(shell: str, commands: Iterable[str]) -> None:
    """Prints how `COMP_LINE` can continue. An unfinished line is full of errors, which are not printed into it."""
    line = os.environ.get("COMP_LINE", "")
    program, *words = line.split() or ["proxytune"]
    last = words[-1] if words and not line.endswith(" ") else ""
    if len(words) < 2 and not (words and line.endswith(" ")):
        print(*(name for name in commands if name.startswith(last)), sep="\n")
    elif last.startswith("-"):
        print(*(flag for names in (*SWITCHES, *VALUED) for flag in names if flag.startswith(last)), sep="\n")
    elif (config_dir() / f"{words[0]}.yaml").is_file():  # one of the commands that Hydra composes
        _query_hydra(shell, program, words[0], words[1:], " " if not last else "")


def _query_hydra(shell: str, program: str, command: str, words: Sequence[str], end: str) -> None:
    from proxytune.cli.run import with_experiment

    try:
        given = flag_parser().parse_known_intermixed_args(words)[0]
        overrides = with_experiment(given.overrides) if command in ("run", "show") else given.overrides
        flags = ["--multirun"] if given.multirun else []
        os.environ["COMP_LINE"] = " ".join([program, *flags, *overrides]) + end
        with application([config_dir()], lambda *_: None) as hydra:
            hydra.shell_completion(given.config_name or command, [f"query={shell}"])
    except (argparse.ArgumentError, *COMPOSING):
        return
