"""`proxytune report`: one or several runs as one HTML file, with tables, figures and every sample; needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from proxytune.cli.arguments import wants_help
from proxytune.errors import UserError, unknown_name

USAGE = """usage: proxytune report RUN... [output=FILE]

  RUN      the folder of a run, or of a sweep: all of its jobs; several are compared side by side
  output   the file to write; default: report.html in the one RUN that is given, or, of several, in this folder"""


def main(arguments: Sequence[str]) -> int:
    """`proxytune report RUN... [output=FILE]`; raises UserError for the user's mistakes."""
    if wants_help(arguments):
        print(f"{USAGE}\n\n{__doc__}")
        return 0
    given = [argument.removeprefix("output=") for argument in arguments if argument.startswith("output=")]
    paths = [argument for argument in arguments if not argument.startswith("output=")]
    if len(given) > 1:
        raise UserError(f"output is given twice: {given[0]} and {given[1]}")
    if not paths:
        raise UserError("proxytune report: no run is given; give the folders of one or several runs")
    for path in paths:
        if "=" in path and not Path(path).exists():
            raise unknown_name("key", path.partition("=")[0], ["output"])
    from proxytune.reporting.report import find_runs, write_report

    target = Path(given[0]) if given else _beside(paths)
    write_report(find_runs(paths), target)
    print(f"Report: {target}")
    return 0


def _beside(paths: Sequence[str]) -> Path:
    """The default file."""
    if len(paths) > 1:
        return Path("report.html")
    path = Path(paths[0])
    return (path if path.is_dir() else path.parent) / "report.html"
