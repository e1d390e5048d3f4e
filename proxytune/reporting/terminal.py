"""The tables of a record in the terminal, split if the terminal is too narrow for all tasks side by side."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from proxytune.record import Record
from proxytune.reporting.columns import Cell, superscript
from proxytune.reporting.tables import LEGEND, Table, tabulate


def show(record: Record, console: Console | None = None) -> None:
    """Prints tables and every note; nothing is cut off, whatever the terminal's width."""
    console = console or Console()
    made = tabulate(record, full=False)
    for table in made.tables:
        for part in _fitting(table, console.width):
            console.print(part)
    notes = [f"{superscript(number)} {note}" for number, note in enumerate(made.notes, start=1)]
    show_notes(console, LEGEND, *notes, *made.remarks)
    if made.verdict:
        console.print(Text(made.verdict, style="bold"))


def _fitting(table: Table, width: int) -> Iterator[RichTable]:
    """The table in as many parts as it takes for each to fit into `width`; a part has at least one task."""
    space = width - _width(["arm", *table.rows])
    start = used = 0
    for end, heading in enumerate(table.headings):
        needed = _width([*heading.split("\n"), *(row[end].text for row in table.rows.values())])
        if end > start and used + needed > space:
            yield _part(table, start, end)
            start, used = end, 0
        used += needed
    yield _part(table, start, len(table.headings))


def _width(texts: list[str]) -> int:
    """Columns of the screen that a column of `texts` takes, with its padding."""
    return max(map(len, texts)) + 3


def _part(table: Table, start: int, end: int) -> RichTable:
    part = plain_table(table.title)
    part.add_column("arm", no_wrap=True)
    for heading in table.headings[start:end]:
        part.add_column(Text(heading), justify="right")
    for arm, cells in table.rows.items():
        part.add_row(Text(arm), *map(cell_text, cells[start:end]))
    return part


def plain_table(title: str | None = None) -> RichTable:
    """An empty table as all of them look."""
    return RichTable(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)


def cell_text(cell: Cell) -> Text:
    return Text(cell.text, style="bold green" if cell.best else "")


def show_notes(console: Console, *notes: str) -> None:
    """The lines below a table."""
    for note in notes:
        console.print(Text(note, style="dim"))
