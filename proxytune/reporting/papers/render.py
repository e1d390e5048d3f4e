"""A paper's table as text: terminal, Markdown, LaTeX or CSV. An arm has a line of paper figures and a line of ours."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable

import pandas as pd
from rich.console import Console
from rich.table import Table

from proxytune.errors import unknown_name
from proxytune.reporting.columns import superscript
from proxytune.reporting.papers.layouts import GAP, RELATIVE
from proxytune.reporting.papers.table import PaperTable

DASH = "—"
WIDTH = 132
SUMMARIES = {GAP: "gap closed", RELATIVE: "relative"}


def render(tables: Iterable[PaperTable], format: str) -> str:
    """`tables` in one of FORMATS; the CSV is tidy (one figure a row, percent, full digits), the others are laid out."""
    if format not in _RENDERERS:
        raise unknown_name("table format", format, _RENDERERS)
    return _RENDERERS[format](list(tables))


def lines(table: PaperTable) -> tuple[list[str], list[list[str]]]:
    """Headings and lines of the laid-out table: of each row the paper's figures, ours, and the n of ours."""
    layout = table.layout
    columns = {**layout.tasks, **SUMMARIES}
    body = []
    for _, part in table.figures.groupby(["panel", "arm"], sort=False):
        row, label = part.set_index("task"), part["label"].iloc[0]
        printed = bool(row["reference"].notna().any())
        if printed:
            body.append([label, "paper", *(_number(row, column, "reference", layout.decimals) for column in columns)])
        if layout.runs:
            ours = f"ours{_marks(table, row)}"
            numbers = (_number(row, column, "ours", layout.decimals) for column in columns)
            body.append(["" if printed else label, ours, *numbers])
        if row["n"].notna().any():
            body.append(["", "n", *(_n(row, column) for column in columns)])
    return ["", "figures", *columns.values()], body


def _marks(table: PaperTable, row: pd.DataFrame) -> str:
    """The numbers of the footnotes that say what differs from the paper's setting."""
    numbers = [number for number, text in enumerate(table.differences, start=1) if (row["differs"] == text).any()]
    return " ".join(map(superscript, numbers))


def _n(row: pd.DataFrame, column: str) -> str:
    n = row["n"].get(column, math.nan)
    return "" if pd.isna(n) else f"{n:.0f}"


def _number(row: pd.DataFrame, column: str, side: str, decimals: int) -> str:
    value = row[side].get(column, math.nan)
    if pd.isna(value):
        return DASH
    unit = "%" if column in SUMMARIES else ""
    error = row["stderr"].get(column, math.nan) if side == "ours" else math.nan
    return f"{value:.{1 if unit else decimals}f}{unit}" + ("" if pd.isna(error) else f" ± {error:.{decimals}f}")


def remarks(table: PaperTable) -> list[str]:
    """Remarks that a reader needs with the numbers."""
    layout = table.layout
    missing = layout.runs and table.figures["ours"].isna().all()
    names = ", ".join(layout.experiments)
    marked = enumerate(table.differences, start=1)
    differences = [f"{superscript(number)} Not the paper's setting: {text}." for number, text in marked]
    fill = [f"Ours is filled by runs of: {names} (runs=[FOLDER,...])."] if missing else []
    return [f"Percent; {table.paper.citation}.", *table.notes, *differences, *fill]


def _statement(tables: list[PaperTable]) -> str:
    return " ".join(dict.fromkeys(table.paper.statement for table in tables))


def _terminal(tables: list[PaperTable]) -> str:
    console = Console(file=io.StringIO(), width=WIDTH, record=False)
    for table in tables:
        head, body = lines(table)
        grid = Table(title=table.layout.title, title_justify="left")
        grid.add_column(head[0], no_wrap=True)
        grid.add_column(head[1])
        for name in head[2:]:
            grid.add_column(name, justify="right", overflow="fold")
        for line in body:
            if line[0]:
                grid.add_section()
            grid.add_row(*line)
        console.print(grid)
        console.print("\n".join(remarks(table)) + "\n", markup=False, highlight=False)
    console.print(_statement(tables), markup=False, highlight=False)
    return console.file.getvalue()  # type: ignore[attr-defined]


def _markdown(tables: list[PaperTable]) -> str:
    parts = []
    for table in tables:
        head, body = lines(table)
        rule = ["---", "---", *["--:"] * (len(head) - 2)]
        grid = "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *body])
        parts.append(f"### {table.layout.title}\n\n{grid}\n\n" + "\n".join(f"- {r}" for r in remarks(table)))
    return "\n\n".join([*parts, _statement(tables)]) + "\n"


_LATEX = str.maketrans(
    {
        "%": r"\%",
        "_": r"\_",
        "&": r"\&",
        "#": r"\#",
        "±": r"$\pm$",
        "→": r"$\rightarrow$",
        "↑": r"$\uparrow$",
        "↓": r"$\downarrow$",
        "α": r"$\alpha$",
        "−": "$-$",
        "—": "---",
        **{superscript(digit): f"$^{digit}$" for digit in range(10)},
    }
)


def _latex(tables: list[PaperTable]) -> str:
    """One booktabs table each."""
    parts = []
    for table in tables:
        head, body = lines(table)
        rows = [" & ".join(line).translate(_LATEX).replace(r"\&", "&") + r" \\" for line in [head, *body]]
        caption = " ".join([table.layout.title + ".", *remarks(table), table.paper.statement]).translate(_LATEX)
        parts.append(
            "\n".join(
                [
                    r"\begin{table}",
                    r"\centering",
                    rf"\begin{{tabular}}{{ll{'r' * (len(head) - 2)}}}",
                    r"\toprule",
                    rows[0],
                    r"\midrule",
                    *rows[1:],
                    r"\bottomrule",
                    r"\end{tabular}",
                    rf"\caption{{{caption}}}",
                    r"\end{table}",
                ]
            )
        )
    return "\n\n".join(parts) + "\n"


def _csv(tables: list[PaperTable]) -> str:
    frames = [t.figures.assign(paper=t.paper.id, table=t.layout.id) for t in tables]
    frame = pd.concat(frames, ignore_index=True)
    return frame[["paper", "table", *frame.columns.drop(["paper", "table"])]].to_csv(index=False)


_RENDERERS: dict[str, Callable[[list[PaperTable]], str]] = {
    "terminal": _terminal,
    "markdown": _markdown,
    "latex": _latex,
    "csv": _csv,
}
FORMATS = tuple(_RENDERERS)
