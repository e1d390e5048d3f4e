"""`proxytune export`: runs in the formats of other tools."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from proxytune.cli.arguments import key_values, wants_help
from proxytune.errors import UserError, unknown_name

FORMATS = {
    "inspect": ("inspect", "logs of Inspect, one for each arm on each task: inspect view --log-dir FOLDER"),
    "every_eval_ever": ("every_eval_ever", "records of Every Eval Ever, with every item"),
    "csv": ("items.csv", "a row for each item and arm, with texts, score and weight"),
    "parquet": ("items.parquet", "the same, for pandas.read_parquet"),
}
"""Format -> the folder or file that is written by default, what it is."""
KEYS = {
    "format": ", ".join(FORMATS),
    "output": "the folder or file to write; default: a new one in the one RUN that is given, or, of several, here",
}


def main(arguments: Sequence[str]) -> int:
    """`proxytune export RUN... format=FORMAT [output=PATH]`; raises UserError for the user's mistakes."""
    if wants_help(arguments):
        listing = "\n".join(f"  {name:<15} {target}: {meaning}" for name, (target, meaning) in FORMATS.items())
        print(f"usage: proxytune export RUN... format=FORMAT [output=PATH]\n\n{__doc__}\n\n{listing}")
        return 0
    paths = [argument for argument in arguments if "=" not in argument or Path(argument).exists()]
    given = key_values("export", [one for one in arguments if one not in paths], KEYS, needed=["format"])
    if not paths:
        raise UserError("proxytune export: no run is given; give the folders of one or several runs")
    if given["format"] not in FORMATS:
        raise unknown_name("format", given["format"], FORMATS)
    from proxytune.reporting.export import export

    beside = Path(paths[0]) if len(paths) == 1 and Path(paths[0]).is_dir() else Path()
    target = Path(given.get("output", beside / FORMATS[given["format"]][0]))
    files, left_out = export(paths, given["format"], target)
    print(f"Exported: {target} ({len(files)} file{'s' * (len(files) != 1)})")
    for line in left_out:
        print(f"Left out: {line}")
    return 0
