"""`proxytune table paper=liu2024 [table=instruction] [runs=[FOLDER,...]] [format=terminal|markdown|latex|csv]`."""

from __future__ import annotations

from collections.abc import Sequence

from proxytune.errors import UserError
from proxytune.reporting.papers.render import render
from proxytune.reporting.papers.table import paper_tables


def main(paper: str, runs: Sequence[str] | str = (), table: str | None = None, format: str = "terminal") -> None:
    """Print the tables of `paper`, or the one named `table`, with the figures of `runs` beside the paper's."""
    runs = [runs] if isinstance(runs, str) else runs
    if not isinstance(runs, Sequence) or not all(isinstance(run, str) for run in runs):
        raise UserError(f"runs={runs} is not allowed: it is a list of run folders or results.json files.")
    print(render(paper_tables(paper, runs, table), format), end="")
