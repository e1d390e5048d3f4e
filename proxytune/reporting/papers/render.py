"""A paper's table as text: terminal, Markdown, LaTeX or CSV. An arm has a line of paper figures and a line of ours."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable

import pandas as pd
from rich.console import Console
from rich.table import Table

from proxytune.errors import unknown_name
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
    """Headings and lines of the laid-out table."""
    layout = table.layout
    columns = {**layout.tasks, **SUMMARIES}
    body = []
    for (label, printed), row in _rows(table):
        if printed:
            body.append([label, "paper", *(_number(row, column, "reference", layout.decimals) for column in columns)])
        if layout.runs:
            name = "" if printed else label
            body.append([name, "ours", *(_number(row, column, "ours", layout.decimals) for column in columns)])
    return ["", "figures", *columns.values()], body


def _rows(table: PaperTable) -> list[tuple[tuple[str, bool], pd.DataFrame]]:
    """((label, whether the paper has it), its figures by column), in order."""
    groups = table.figures.groupby(["panel", "arm"], sort=False)
    return [((part["label"].iloc[0], key in table.layout.rows), part.set_index("task")) for key, part in groups]


def _number(row: pd.DataFrame, column: str, side: str, decimals: int) -> str:
    value = row[side].get(column, math.nan)
    if pd.isna(value):
        return DASH
    unit = "%" if column in SUMMARIES else ""
    error = row["stderr"].get(column, math.nan) if side == "ours" else math.nan
    return f"{value:.{1 if unit else decimals}f}{unit}" + ("" if pd.isna(error) else f" ± {error:.{decimals}f}")


def remarks(table: PaperTable) -> list[str]:
    """What a reader must know beside the numbers."""
    layout = table.layout
    missing = layout.runs and table.figures["ours"].isna().all()
    names = ", ".join(layout.experiments)
    fill = [f"Ours is filled by runs of: {names} (runs=[FOLDER,...])."] if missing else []
    return [f"Percent; {table.paper.citation}.", *table.notes, *fill]


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
            grid.add_column(name, justify="right")
        for line in body:
            grid.add_row(*line, end_section=line[1] == "ours")
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
