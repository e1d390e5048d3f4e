"""Reports of a run: tables in the terminal, `table.md` and `results.csv`. Reads records, knows no model."""

from proxytune.reporting.files import tidy, write
from proxytune.reporting.tables import Tables, tabulate
from proxytune.reporting.terminal import show

__all__ = ["Tables", "show", "tabulate", "tidy", "write"]
