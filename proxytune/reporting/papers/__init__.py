"""The papers' tables, with our figures beside theirs.

from proxytune.reporting.papers import paper_tables, render
print(render(paper_tables("liu2024", runs=["outputs/a/results.json"]), "markdown"))
"""

from proxytune.reporting.papers.layouts import PAPERS
from proxytune.reporting.papers.render import FORMATS, render
from proxytune.reporting.papers.table import PaperTable, own_table, paper_tables

__all__ = ["FORMATS", "PAPERS", "PaperTable", "own_table", "paper_tables", "render"]
