"""Runs in the formats of other tools: a module for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from proxytune.reporting.export import every_eval_ever, inspect_log, tidy
from proxytune.reporting.export.source import runs_of
from proxytune.reporting.report.source import Run


class Format(NamedTuple):
    write: Callable[[Sequence[Run], Path], list[Path]]
    """Writes runs into a folder or file, and returns the files written."""
    target: str
    """The folder or file that is written by default."""
    meaning: str


FORMATS = {
    "inspect": Format(
        inspect_log.write, "inspect", "logs of Inspect, one for each arm on each task: inspect view --log-dir FOLDER"
    ),
    "every_eval_ever": Format(every_eval_ever.write, "every_eval_ever", "records of Every Eval Ever, with every item"),
    "csv": Format(tidy.write_csv, "items.csv", "a row for each item and arm, with texts, score and weight"),
    "parquet": Format(tidy.write_parquet, "items.parquet", "the same, for pandas.read_parquet"),
}


def export(paths: Sequence[str], wanted: str, target: Path) -> tuple[list[Path], list[str]]:
    """Writes the runs of folders, and the jobs of sweeps, in one of `FORMATS`; the files, and what was left out.

    Raises UserError for a folder that is no run, for one whose scores or items are not all there, and where it cannot
    write.
    """
    runs = runs_of(paths)
    return FORMATS[wanted].write(runs, target), every_eval_ever.left_out(runs) if wanted == "every_eval_ever" else []
