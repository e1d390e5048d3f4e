"""Runs in the formats of other tools: a module for each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from proxytune.reporting.export import every_eval_ever, inspect_log, tidy
from proxytune.reporting.export.source import runs_of

FORMATS = {
    "inspect": inspect_log.write,
    "every_eval_ever": every_eval_ever.write,
    "csv": tidy.write_csv,
    "parquet": tidy.write_parquet,
}
"""Format -> what writes runs into a folder or file, and returns the files written."""


def export(paths: Sequence[str], wanted: str, target: Path) -> tuple[list[Path], list[str]]:
    """Writes the runs of folders, and the jobs of sweeps, in one of `FORMATS`; the files, and what was left out.

    Raises UserError for a folder that is no run, for one whose scores or items are not all there, and where it cannot
    write.
    """
    runs = runs_of(paths)
    return FORMATS[wanted](runs, target), every_eval_ever.left_out(runs) if wanted == "every_eval_ever" else []
