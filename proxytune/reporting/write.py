"""The report files of a run."""

from __future__ import annotations

from pathlib import Path

from proxytune.reporting.markdown import markdown
from proxytune.reporting.tables import Record
from proxytune.reporting.tidy import tidy


def write(record: Record, folder: str | Path) -> None:
    """Writes `table.md` and `results.csv` into `folder`."""
    folder = Path(folder)
    (folder / "table.md").write_text(markdown(record), encoding="utf-8")
    tidy(record).to_csv(folder / "results.csv", index=False)
