"""`proxytune analyze`: what fusion changes token by token (Liu et al. 2024, section 6.1), beside the paper's figures.

The runs need traces: proxytune run ... trace=summary.
"""

from __future__ import annotations

from collections.abc import Sequence

from proxytune.cli.arguments import check_runs, wants_help

USAGE = "usage: proxytune analyze RUN..."


def main(arguments: Sequence[str]) -> int:
    """`proxytune analyze RUN...`; raises UserError for the user's mistakes."""
    if wants_help(arguments):
        print(f"{USAGE}\n\n{__doc__}")
        return 0
    check_runs("analyze", arguments)
    from rich.console import Console

    from proxytune.reporting.analysis import analyze, show_analysis
    from proxytune.reporting.frames import frames

    show_analysis(analyze([frames(run) for run in arguments]), Console())
    return 0
