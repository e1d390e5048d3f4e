"""The report files of a run."""

from __future__ import annotations

from pathlib import Path

from proxytune.atomic import atomic_write
from proxytune.reporting.markdown import markdown
from proxytune.reporting.tables import Record
from proxytune.reporting.tidy import tidy


def write(record: Record, folder: str | Path) -> None:
    """Writes `table.md` and `results.csv` into `folder`, each whole or not at all; raises UserError if it cannot."""
    files = {"table.md": markdown(record), "results.csv": tidy(record).to_csv(index=False)}
    for name, text in files.items():
        with atomic_write(Path(folder) / name) as file:
            file.write(text)
