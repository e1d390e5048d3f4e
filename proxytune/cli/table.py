"""`proxytune table`: a paper's tables with the figures of your own runs, or a paper's layout for your own families."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from proxytune.cli.arguments import pairs
from proxytune.errors import UserError

KEYS = {
    "paper": "liu2024 or fan2024: its tables, the figures of runs of its experiments (conf/experiment) beside its own",
    "table": "one of the paper's tables; leave out for all",
    "layout": "liu2024 or fan2024: one table laid out like the paper's, for runs of any families and tasks",
    "runs": "[FOLDER,...]: run folders or their results.json files",
    "format": "terminal (default), markdown, latex or csv",
}


def main(arguments: Sequence[str]) -> int:
    """`proxytune table paper=...|layout=... [runs=[...]] ...`; raises UserError for the user's mistakes."""
    if any(argument in ("-h", "--help") for argument in arguments):
        print(_help())
        return 0
    given = _parse(arguments)
    from proxytune.reporting.papers import own_table, paper_tables, render

    runs = _runs(given.get("runs", []))
    if "layout" in given:
        tables = [own_table(given["layout"], runs)]
    else:
        tables = paper_tables(given["paper"], runs, given.get("table"))
    print(render(tables, given.get("format", "terminal")), end="")
    return 0


def _parse(arguments: Sequence[str]) -> dict[str, Any]:
    list(pairs(arguments, KEYS, "table"))  # only checked: OmegaConf gives the values their types
    try:
        given = OmegaConf.to_container(OmegaConf.from_dotlist(list(arguments)))
    except (OmegaConfBaseException, YAMLError) as error:
        raise UserError(f"cannot read the arguments: {str(error).splitlines()[0]}") from error
    assert isinstance(given, dict)
    if "paper" not in given and "layout" not in given:
        raise UserError(f"paper=... is missing: {KEYS['paper']}; or layout=...: {KEYS['layout']}")
    for key in {"paper", "table"} & given.keys() if "layout" in given else ():
        raise UserError(f"{key}=... has no effect with layout=...: leave one of them out")
    return {str(key): value for key, value in given.items()}


def _runs(given: Any) -> list[str]:
    runs = [given] if isinstance(given, str) else given
    if not isinstance(runs, list) or not all(isinstance(run, str) for run in runs):
        raise UserError(f"runs={given} is not allowed: it is a list of run folders or results.json files")
    return runs


def _help() -> str:
    listing = "\n".join(f"  {key:<7} {meaning}" for key, meaning in KEYS.items())
    usage = """usage: proxytune table paper=PAPER [table=TABLE] [runs=[FOLDER,...]] [format=FORMAT]
       proxytune table layout=PAPER runs=[FOLDER,...] [format=FORMAT]"""
    return f"{usage}\n\n{__doc__}\n\n{listing}"
