"""The tables of a record as Markdown."""

from __future__ import annotations

from proxytune.reporting.tables import LEGEND, Cell, Record, Table, report


def markdown(record: Record) -> str:
    """Scores, gaps closed and chosen weights, with every note, as one Markdown document."""
    tables = report(record)
    parts = [_table(table) for table in (tables.scores, tables.gaps, tables.weights) if table.rows]
    parts.append(LEGEND)
    parts += [f"{number}. {note}" for number, note in enumerate(tables.notes, start=1)]
    parts += tables.remarks
    return "\n\n".join(parts) + "\n"


def _table(table: Table) -> str:
    header = ["arm", *(column.replace("\n", "<br>") for column in table.columns)]
    lines = [_row(header), "|---|" + "--:|" * len(table.columns)]
    lines += [_row([arm, *map(_text, cells)]) for arm, cells in table.rows.items()]
    return f"**{table.title}**\n\n" + "\n".join(lines)


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _text(cell: Cell) -> str:
    return f"**{cell.text}**" if cell.best else cell.text
