"""A paper's tables and token-level figures as charts: its own points, and ours beside them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import altair as alt
import pandas as pd

from proxytune.reporting.analysis import PAPER, SIDES, analyze, in_paper, printed
from proxytune.reporting.columns import NORMAL_95
from proxytune.reporting.figure_style import KINDS, panels
from proxytune.reporting.frames import Frames
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


def shift_charts(frames: Sequence[Frames], columns: int = 2) -> dict[str, alt.FacetChart]:
    """liu2024_changed_tokens, if a fused arm was traced on one of the paper's tasks."""
    if all(one.traces.empty or one.traces["p_base"].isna().all() for one in frames):
        return {}
    found = analyze(frames)
    shift = found["shift"].rename(columns={"changed_stderr": "stderr"})
    parts = [_beside(shift, "changed", "top token changed", "tokens changed, %", 100)]
    for side in SIDES:
        rows = found["equations"][found["equations"]["side"] == side]
        quantity = f"probability shift, {side} side of equations"
        parts.append(_beside(rows, "delta", quantity, f"Δ on the {side} of equations", 1))
    points = pd.concat(parts, ignore_index=True)
    if points.empty:
        return {}
    order = list(dict.fromkeys(points["label"]))
    note = "Lines are 95 % intervals, clustered by item. The paper gives no errors."
    title = "What fusion changes, beside the paper's figures"
    return {"liu2024_changed_tokens": panels(beside(PAPER, order), points, title, columns, note)}


def _beside(rows: pd.DataFrame, value: str, quantity: str, title: str, scale: float) -> pd.DataFrame:
    """Our arms' points on the paper's tasks, and the paper's own; a panel for each task."""
    paper = printed(quantity)
    known = rows["task"].map(lambda task: in_paper(task, paper))
    rows = rows.assign(theirs=known.map(paper)).dropna(subset=["theirs"])
    several = rows["run"].nunique() > 1
    ours = pd.DataFrame(
        {
            "label": rows["arm"] + (" (" + rows["run"] + ")" if several else ""),
            "panel": rows["task"] + ": " + title,
            "value": scale * rows[value],
            "stderr": scale * rows["stderr"],
            "n": rows["tokens"],
            "source": OURS,
        }
    )
    half = NORMAL_95 * ours["stderr"]
    ours = ours.assign(low=ours["value"] - half, high=ours["value"] + half)
    tasks = rows.drop_duplicates("task")
    theirs = pd.DataFrame(
        {
            "label": PAPER,
            "panel": tasks["task"] + ": " + title,
            "value": scale * tasks["theirs"],
            "source": PAPER,
        }
    )
    return pd.concat([ours, theirs], ignore_index=True)
