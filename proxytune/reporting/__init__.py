"""What a run says in the end: a table in the terminal, `table.md` and `results.csv`. Reads records, knows no model."""

from proxytune.reporting.tables import Report, report
from proxytune.reporting.terminal import show
from proxytune.reporting.tidy import tidy
from proxytune.reporting.write import write

__all__ = ["Report", "report", "show", "tidy", "write"]
