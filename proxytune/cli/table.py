"""`proxytune table`: a paper's tables, with the figures of our own runs beside the paper's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from proxytune.cli.arguments import pairs
from proxytune.errors import UserError

KEYS = {
    "paper": "liu2024 or fan2024",
    "table": "one of the paper's tables; leave out for all",
    "runs": "[FOLDER,...]: run folders or their results.json files, of the paper's experiments (conf/experiment)",
    "format": "terminal (default), markdown, latex or csv",
}


def main(arguments: Sequence[str]) -> int:
    """`proxytune table paper=... [table=...] [runs=[...]] [format=...]`; raises UserError for the user's mistakes."""
    if any(argument in ("-h", "--help") for argument in arguments):
        print(_help())
        return 0
    given = _parse(arguments)
    from proxytune.reporting.papers import paper_tables, render

    tables = paper_tables(given["paper"], _runs(given.get("runs", [])), given.get("table"))
    print(render(tables, given.get("format", "terminal")), end="")
    return 0


def _parse(arguments: Sequence[str]) -> dict[str, Any]:
    list(pairs(arguments, KEYS, "table"))  # only checked: OmegaConf gives the values their types
    try:
        given = OmegaConf.to_container(OmegaConf.from_dotlist(list(arguments)))
    except (OmegaConfBaseException, YAMLError) as error:
        raise UserError(f"cannot read the arguments: {str(error).splitlines()[0]}") from error
    assert isinstance(given, dict)
    if "paper" not in given:
        raise UserError(f"paper=... is missing: {KEYS['paper']}")
    return {str(key): value for key, value in given.items()}


def _runs(given: Any) -> list[str]:
    runs = [given] if isinstance(given, str) else given
    if not isinstance(runs, list) or not all(isinstance(run, str) for run in runs):
        raise UserError(f"runs={given} is not allowed: it is a list of run folders or results.json files")
    return runs


def _help() -> str:
    listing = "\n".join(f"  {key:<7} {meaning}" for key, meaning in KEYS.items())
    usage = "usage: proxytune table paper=PAPER [table=TABLE] [runs=[FOLDER,...]] [format=FORMAT]"
    return f"{usage}\n\n{__doc__}\n\n{listing}"
