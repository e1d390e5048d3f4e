"""The frames of `analysis.analyze` as tables in the terminal, the paper's figures beside ours."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from proxytune.reporting.analysis import ARM, PAPER, POSITIONS, SIDES, in_paper, printed


def show(analysis: Mapping[str, pd.DataFrame], console: Console) -> None:
    """Prints one table per quantity; a run's name is shown where there are several runs."""
    several = analysis["shift"]["run"].nunique() > 1
    for title, headings, rows in _tables(analysis):
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        names = ["run", "task", "arm", *headings] if several else ["task", "arm", *headings]
        for name in names:
            table.add_column(name, justify="left" if name in (*ARM, "expert", "tokens, mean Δ") else "right")
        for key, cells in rows:
            table.add_row(*(Text(cell) for cell in (*(key if several else key[1:]), *cells)))
        console.print(table)
    console.print(
        Text("Δ = p_fused − p_base of the chosen token; mean ± standard error, clustered by item.", style="dim")
    )


Row = tuple[tuple[str, ...], list[str]]


def _tables(analysis: Mapping[str, pd.DataFrame]) -> Iterable[tuple[str, Sequence[str], list[Row]]]:
    yield "What fusion changes", ("tokens", "changed, %", "Δ"), _shift(analysis["shift"])
    yield (
        "Δ by the token's position",
        tuple(POSITIONS),
        _wide(analysis["positions"], ARM, "position", "delta", POSITIONS),
    )
    if len(analysis["equations"]):
        yield "Δ in equations", SIDES, _equations(analysis["equations"])
    yield "Most influenced tokens", ("tokens, mean Δ",), _tokens(analysis["tokens"])
    keys = [*ARM, "expert"]
    weights = _wide(analysis["weights"], keys, "position", "alpha", POSITIONS)
    yield "Weight α by position", ("expert", *POSITIONS), [(key[:3], [key[3], *cells]) for key, cells in weights]


def _shift(shift: pd.DataFrame) -> list[Row]:
    rows: list[Row] = []
    for row in shift.to_dict("records"):
        changed = _number(100 * row["changed"], 100 * row["changed_stderr"], 1)
        delta = _number(row["delta"], row["delta_stderr"], 3)
        rows.append((_key(row), [f"{row['tokens']:,}", changed, delta]))
    paper = printed("top token changed")
    return rows + [((*key, PAPER), ["", f"{100 * paper[name]:.1f}", ""]) for key, name in _in_paper(shift, paper)]


def _key(row: Mapping[Hashable, Any]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in ARM)


def _equations(equations: pd.DataFrame) -> list[Row]:
    paper = {side: printed(f"probability shift, {side} side of equations") for side in SIDES}
    shown = _in_paper(equations, paper["left"])
    return _wide(equations, ARM, "side", "delta", SIDES) + [
        ((*key, PAPER), [f"{paper[side][name]:.3f}" for side in SIDES]) for key, name in shown
    ]


def _in_paper(frame: pd.DataFrame, paper: Mapping[str, float]) -> list[tuple[tuple[str, str], str]]:
    """(run, task) and the task's name in the paper, where the paper has a figure for it."""
    tasks = frame[["run", "task"]].drop_duplicates().itertuples(index=False)
    named = [((run, task), in_paper(task, paper)) for run, task in tasks]
    return [(key, name) for key, name in named if name is not None]


def _tokens(tokens: pd.DataFrame) -> list[Row]:
    listed: dict[tuple[str, ...], list[str]] = {}
    for row in tokens.to_dict("records"):
        listed.setdefault(_key(row), []).append(f"{row['text']!r} {row['delta']:+.2f}")
    return [(key, [", ".join(said)]) for key, said in listed.items()]


def _wide(frame: pd.DataFrame, keys: list[str], column: str, value: str, order: Iterable[str]) -> list[Row]:
    """One row per `keys`, one cell per value of `column`; empty where there is none."""
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for row in frame.to_dict("records"):
        cells = rows.setdefault(tuple(str(row[name]) for name in keys), {})
        cells[row[column]] = _number(row[value], row["stderr"], 3)
    return [(key, [cells.get(name, "") for name in order]) for key, cells in rows.items()]


def _number(value: float, error: float, digits: int) -> str:
    return f"{value:z.{digits}f}" + ("" if pd.isna(error) else f" ± {error:.{digits}f}")
