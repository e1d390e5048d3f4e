"""`proxytune report`: one or several runs as one HTML file, with tables, figures and every sample; needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from proxytune.cli.arguments import default_output, runs_and_keys, usage, wants_help

KEYS = {"output": "the file to write; default: report.html in the one RUN that is given, or, of several, here"}


def main(arguments: Sequence[str]) -> int:
    """`proxytune report RUN... [output=FILE]`; raises UserError for the user's mistakes."""
    if wants_help(arguments):
        print(usage("report", str(__doc__), KEYS, runs=True))
        return 0
    runs, given = runs_and_keys("report", arguments, KEYS)
    from proxytune.reporting.report import find_runs, write_report

    target = Path(given.get("output", default_output(runs, "report.html")))
    write_report(find_runs(runs), target)
    print(f"Report: {target}")
    return 0
