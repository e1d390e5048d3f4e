"""How the figures look: colours by role, the order of arms, panels by task. Shared by all figures."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle

import altair as alt
import pandas as pd

KINDS = {
    "base": "#6e7681",
    "antiexpert": "#a0522d",
    "expert": "#e69f00",
    "tuned": "#009e73",
    "fused, static": "#56b4e9",
    "fused, dynamic": "#0072b2",
}
"""Colours of Okabe and Ito, which the colour-blind can tell apart; a role has the same one in every figure."""
SERIES = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#6e7681", "#a0522d"]
"""For what is no role: runs, experts, arms of one kind."""
WIDTH, HEIGHT = 250, 180
"""Of a panel in pixels, without its labels; one with a row for each arm is as high as they need."""
ERRORS = "Lines are 95 % intervals."
_GREY = "#6e7681"


def by_role(rows: pd.DataFrame) -> alt.Color:
    present = [role for role in KINDS if role in set(rows["role"])]
    return alt.Color("role:N", title=None, scale=alt.Scale(domain=present, range=[KINDS[role] for role in present]))


def by_series(field: str, title: str | None, order: Sequence[str], known: Mapping[str, str] | None = None) -> alt.Color:
    """Another colour for each of `order`; those of `known` names are given."""
    known = {name: color for name, color in (known or {}).items() if name in order}
    free = cycle([color for color in SERIES if color not in known.values()])
    colors = [known.get(name) or next(free) for name in order]
    return alt.Color(f"{field}:N", title=title, scale=alt.Scale(domain=list(order), range=colors))


def arm_order(rows: pd.DataFrame) -> list[str]:
    """Base, antiexpert, experts, tuned, static by weight, then the others as they come."""
    ranks = {role: rank for rank, role in enumerate(KINDS)}
    arms = rows.drop_duplicates("arm").assign(rank=lambda frame: frame["role"].map(ranks))
    return list(arms.sort_values(["rank", "alpha"], kind="stable")["arm"])


def dots(
    rows: pd.DataFrame,
    fields: tuple[str, str, str],
    title: str,
    columns: int,
    note: str,
    *,
    ends: Sequence[float] = (),
    bars: bool = False,
) -> alt.FacetChart:
    """Arms down, each with a dot (or a bar) and its interval; with several runs one for each run.

    `fields` are value, low and high; `ends` are marked by dashed lines.
    """
    value, low, high = fields
    runs = list(dict.fromkeys(rows["run"]))
    arms = alt.Chart().encode(
        y=alt.Y("arm:N", sort=arm_order(rows), title=None),
        color=by_series("run", "run", runs) if len(runs) > 1 else by_role(rows),
    )
    if len(runs) > 1:
        arms = arms.encode(yOffset=alt.YOffset("run:N", sort=runs))
    hover = ["run", "arm", *(alt.Tooltip(f"{field}:Q", format=".2f") for field in fields), "n:Q"]
    scale = alt.Scale(zero=bars, nice=True, padding=0 if bars else 8)
    x = alt.X(f"{value}:Q", title=None, scale=scale, axis=alt.Axis(tickCount=5))
    mark = arms.mark_bar(height=alt.RelativeBandSize(0.7)) if bars else arms.mark_circle(size=70, opacity=1)
    line = arms.mark_rule(strokeWidth=2).encode(x=alt.X(f"{low}:Q", title=None), x2=f"{high}:Q")
    if bars:
        line = line.encode(color=alt.value("#24292f"))
    marks = [alt.Chart().mark_rule(color="#9aa0a6", strokeDash=[4, 3]).encode(x=alt.datum(end)) for end in ends]
    drawn = mark.encode(x=x, tooltip=hover)
    return panels([*marks, drawn, line] if bars else [*marks, line, drawn], rows, title, columns, note)


def bands(rows: pd.DataFrame, axis: str, title: str, columns: int, note: str) -> alt.FacetChart:
    """Lines of `mean` over `step`, one for each `series`, each in a band from `low` to `high`; `axis` names them."""
    order = list(dict.fromkeys(rows["series"]))
    x = alt.X("step:Q", title="token of the answer", scale=alt.Scale(nice=False), axis=alt.Axis(tickMinStep=1))
    lines = alt.Chart().encode(x=x, color=by_series("series", None, order))
    band = lines.mark_area(opacity=0.12).encode(y=alt.Y("low:Q", title=axis), y2="high:Q")
    numbers = [alt.Tooltip(f"{field}:Q", format=".3f") for field in ("mean", "low", "high")]
    line = lines.mark_line(strokeWidth=2, point={"size": 25}).encode(
        y=alt.Y("mean:Q", title=axis), tooltip=["series", "step:Q", *numbers, "n:Q"]
    )
    return panels([band, line], rows, title, columns, note, HEIGHT)


def panels(
    layers: Iterable[alt.Chart], rows: pd.DataFrame, title: str, columns: int, note: str = "", height: int | None = None
) -> alt.FacetChart:
    """One panel for each of the column `panel`, in the order of the rows, with scales of its own.

    Without `height` it is that of the rows on a discrete axis.
    """
    size = {"width": WIDTH} if height is None else {"width": WIDTH, "height": height}
    chart = alt.layer(*layers, data=rows).properties(**size)
    order = list(dict.fromkeys(rows["panel"]))
    facet = alt.Facet("panel:N", title=None, sort=order, header=alt.Header(labelFontSize=12, labelFontWeight="bold"))
    faceted = chart.facet(facet, columns=min(columns, len(order)))
    return _finished(faceted.resolve_scale(x="independent", y="independent"), title, _wrapped(note, 55 * columns))


def notes(text: str, results: pd.DataFrame, rows: pd.DataFrame) -> str:
    """What lines mean, `text`, and which of `results` are undefined and not among `rows`."""
    missing = results.drop(rows.index)
    whole = set(results["task"]) - set(rows["task"])
    cells = [f"all arms on {task}" for task in dict.fromkeys(missing["task"]) if task in whole]
    parts = missing[~missing["task"].isin(whole)]
    cells += [f"{arm} on {task}" for arm, task in zip(parts["arm"], parts["task"], strict=True)]
    said = [ERRORS, f"{text}." if text else "", f"Undefined and left out: {', '.join(cells)}." if cells else ""]
    return "\n".join(filter(None, said))


def _finished(chart: alt.FacetChart, title: str, note: list[str]) -> alt.FacetChart:
    """With its title, lines of notes below it, and letters that are read at 400 pixels and on paper."""
    heading = alt.TitleParams(title, subtitle=note, anchor="start", fontSize=15)
    return (
        chart.properties(title=heading)
        .configure_axis(labelFontSize=12, titleFontSize=12, labelLimit=260, titleFontWeight="normal")
        .configure_legend(
            **{"orient": "bottom", "columns": 3, "labelLimit": 220, "symbolLimit": 0, "symbolOpacity": 1},
            labelFontSize=12,
            titleFontSize=12,
        )
        .configure_title(subtitleFontSize=12, subtitleColor=_GREY)
        .configure_view(stroke=None)
    )


def _wrapped(note: str, width: int) -> list[str]:
    return [line for part in note.split("\n") for line in textwrap.wrap(part, width)]
