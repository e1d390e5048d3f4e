"""`proxytune figures`: the figures of runs as files, on request with a paper's own points beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from proxytune.cli.arguments import default_output, runs_and_keys, usage, wants_help
from proxytune.errors import UserError

KEYS = {
    "format": "svg (default), png or pdf",
    "paper": "liu2024 or fan2024: also its tables as figures, its points beside those of runs of its experiments",
    "columns": "panels side by side; default: 2",
    "output": "the folder to write into; default: figures in the one RUN that is given, or, of several, here",
}


def main(arguments: Sequence[str]) -> int:
    """`proxytune figures RUN... [format=...] ...`; raises UserError for the user's mistakes."""
    if wants_help(arguments):
        print(usage("figures", str(__doc__), KEYS, runs=True))
        return 0
    runs, given = runs_and_keys("figures", arguments, KEYS)
    columns = _columns(given.get("columns", "2"))

    from proxytune.reporting.charts import charts, write_figures
    from proxytune.reporting.frames import frames
    from proxytune.reporting.papers import paper_tables
    from proxytune.reporting.papers.chart import paper_charts, shift_charts
    from proxytune.reporting.report import find_runs

    folders = [run.folder for run in find_runs(runs)]
    read = [frames(folder) for folder in folders]
    made = charts(read, columns)
    if "paper" in given:
        made |= paper_charts(paper_tables(given["paper"], folders), columns)
    if given.get("paper") == "liu2024":
        made |= shift_charts(read, columns)
    target = Path(given.get("output", default_output(runs, "figures")))
    for path in write_figures(made, target, given.get("format", "svg")):
        print(path)
    return 0


def _columns(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"columns={text} is not allowed: it is an integer from 1")
    return int(text)
