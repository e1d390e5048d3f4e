"""`proxytune table`: a paper's tables with the figures of your own runs, or a paper's layout for your own families."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import yaml

from proxytune.cli.arguments import key_values, usage, wants_help
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
    if wants_help(arguments):
        print(usage("table", str(__doc__), KEYS))
        return 0
    given = key_values("table", arguments, KEYS)
    _check_together(given)
    from proxytune.reporting.papers import own_table, paper_tables, render

    runs = _runs(given.get("runs", "[]"))
    if "layout" in given:
        tables = [own_table(given["layout"], runs)]
    else:
        tables = paper_tables(given["paper"], runs, given.get("table"))
    print(render(tables, given.get("format", "terminal")), end="")
    return 0


def _check_together(given: Mapping[str, str]) -> None:
    if "paper" not in given and "layout" not in given:
        raise UserError(f"paper=... is missing: {KEYS['paper']}; or layout=...: {KEYS['layout']}")
    for key in {"paper", "table"} & given.keys() if "layout" in given else ():
        raise UserError(f"{key}=... has no effect with layout=...: leave one of them out")


def _runs(text: str) -> list[str]:
    try:
        given = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"cannot read the arguments: runs={text} is not a list [FOLDER,...]") from error
    runs = [given] if isinstance(given, str) else given
    if not isinstance(runs, list) or not all(isinstance(run, str) for run in runs):
        raise UserError(f"runs={text} is not allowed: it is a list of run folders or results.json files")
    return runs
