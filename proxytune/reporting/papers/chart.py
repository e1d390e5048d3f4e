"""A paper's tables as figures: its own points, and ours beside them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import altair as alt
import pandas as pd

from proxytune.reporting.columns import NORMAL_95
from proxytune.reporting.figure_style import KINDS, panels
from proxytune.reporting.papers.table import PaperTable

OURS = "this run"


def paper_charts(tables: Iterable[PaperTable], columns: int = 2) -> dict[str, alt.FacetChart]:
    """By "<paper>_<table>", one figure for each of `tables` that our runs have measured some of."""
    made = {f"{table.paper.id}_{table.layout.id}": _chart(table, columns) for table in tables}
    return {name: chart for name, chart in made.items() if chart is not None}


def _chart(table: PaperTable, columns: int) -> alt.FacetChart | None:
    """The tasks that we have measured, and the rows of the panels that we have measured in them."""
    figures = table.figures
    ours = figures.dropna(subset=["ours"])
    rows = figures[
        figures["panel"].isin(ours["panel"])
        & figures["task"].isin(ours["task"])
        & figures["task"].isin(table.layout.tasks)
    ]
    if rows.empty:
        return None
    paper = table.paper.citation
    points = pd.concat([_points(rows, "reference", paper), _points(rows, "ours", OURS)], ignore_index=True)
    points["panel"] = points["task"].map(dict(table.layout.tasks))
    half = NORMAL_95 * points["stderr"].where(points["source"] == OURS)
    points = points.assign(low=points["value"] - half, high=points["value"] + half)
    settings = [f"Some settings are not the paper's: {text}." for text in table.differences]
    note = "\n".join(["Lines are 95 % intervals.", *settings, *table.notes])
    order = list(dict.fromkeys(rows["label"]))
    return panels(beside(paper, order), points, f"{table.layout.title}, %", columns, note)


def beside(paper: str, order: Sequence[str]) -> list[alt.Chart]:
    """Marks of points with label (in this `order`), value, low, high, stderr, n, and source: `paper` or `OURS`."""
    colors = alt.Scale(domain=[paper, OURS], range=[KINDS["expert"], KINDS["fused, dynamic"]])
    shapes = alt.Scale(domain=[paper, OURS], range=["diamond", "circle"])
    base = alt.Chart().encode(y=alt.Y("label:N", title=None, sort=list(order)))
    color = alt.Color("source:N", title=None, scale=colors)
    axis = alt.Axis(tickCount=5)
    x = alt.X("value:Q", title=None, scale=alt.Scale(zero=False, padding=8), axis=axis)
    hover = ["label", "source", alt.Tooltip("value:Q", format=".2f"), alt.Tooltip("stderr:Q", format=".2f"), "n:Q"]
    return [
        base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=None), x2="high:Q", color=color),
        base.mark_point(size=70, filled=True, opacity=1).encode(
            x=x, color=color, shape=alt.Shape("source:N", title=None, scale=shapes), tooltip=hover
        ),
    ]


def _points(rows: pd.DataFrame, side: str, source: str) -> pd.DataFrame:
    """The figures of one side that there are."""
    points = rows.dropna(subset=[side])[["label", "task", side, "stderr", "n"]]
    return points.rename(columns={side: "value"}).assign(source=source)
