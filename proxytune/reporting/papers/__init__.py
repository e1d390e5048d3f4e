"""The papers' tables, with our figures beside theirs.

from proxytune.reporting.papers import paper_tables, render
print(render(paper_tables("liu2024", runs=["outputs/a/results.json"]), "markdown"))
"""

from typing import TYPE_CHECKING, Any

from proxytune.reporting.papers.layouts import PAPERS
from proxytune.reporting.papers.render import FORMATS, render
from proxytune.reporting.papers.table import PaperTable, own_table, paper_tables

if TYPE_CHECKING:
    from proxytune.reporting.papers.chart import paper_charts

__all__ = ["FORMATS", "PAPERS", "PaperTable", "own_table", "paper_charts", "paper_tables", "render"]


def __getattr__(name: str) -> Any:
    """Charts load when they are asked for: tables need no altair."""
    if name == "paper_charts":
        from proxytune.reporting.papers.chart import paper_charts

        return paper_charts
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
