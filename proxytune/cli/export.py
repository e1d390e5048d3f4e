"""`proxytune export`: runs in the formats of other tools."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from proxytune.cli.arguments import default_output, runs_and_keys, usage, wants_help
from proxytune.errors import unknown_name
from proxytune.reporting.export import FORMATS, export

KEYS = {
    "format": ", ".join(FORMATS),
    "output": "the folder or file to write; default: a new one in the one RUN that is given, or, of several, here",
}
NEEDED = ("format",)


def main(arguments: Sequence[str]) -> int:
    """`proxytune export RUN... format=FORMAT [output=PATH]`; raises UserError for the user's mistakes."""
    if wants_help(arguments):
        listing = "\n".join(f"  {name:<15} {one.target}: {one.meaning}" for name, one in FORMATS.items())
        print(usage("export", f"{__doc__}\n\n{listing}", KEYS, NEEDED, runs=True))
        return 0
    runs, given = runs_and_keys("export", arguments, KEYS, NEEDED)
    if given["format"] not in FORMATS:
        raise unknown_name("format", given["format"], FORMATS)
    target = Path(given.get("output", default_output(runs, FORMATS[given["format"]].target)))
    files, left_out = export(runs, given["format"], target)
    print(f"Exported: {target} ({len(files)} file{'s' * (len(files) != 1)})")
    for line in left_out:
        print(f"Left out: {line}")
    return 0
