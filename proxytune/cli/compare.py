"""`proxytune compare`: what differs between runs, and each arm's scores as paired differences over the same items."""

from __future__ import annotations

from collections.abc import Sequence

from proxytune.cli.arguments import wants_help
from proxytune.errors import UserError


def main(arguments: Sequence[str]) -> int:
    """`proxytune compare RUN RUN...`; raises UserError for the user's mistakes."""
    if wants_help(arguments):
        print(f"usage: proxytune compare RUN RUN...\n\n{__doc__}\n\nThe others are compared with the first.")
        return 0
    if len(arguments) < 2:
        raise UserError(f"proxytune compare RUN RUN...: {len(arguments)} run folders were given, at least 2 are needed")
    from proxytune.reporting.compare import compare_runs

    compare_runs(list(arguments))
    return 0
