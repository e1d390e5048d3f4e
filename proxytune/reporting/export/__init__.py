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


def export(paths: Sequence[str], wanted: str, target: Path) -> list[Path]:
    """Writes the runs of folders, and the jobs of sweeps, in one of `FORMATS`.

    Raises UserError for a folder that is no run, for one whose scores or items are not all there, and where it cannot
    write.
    """
    return FORMATS[wanted](runs_of(paths), target)
