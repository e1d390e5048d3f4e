"""One or several runs as a single HTML file that needs no network: `proxytune report`."""

from proxytune.reporting.report.page import write_report
from proxytune.reporting.report.source import find_runs, read_run

__all__ = ["find_runs", "read_run", "write_report"]
