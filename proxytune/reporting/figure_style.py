"""How the figures look: colours by role, the order of arms, panels by task. Known to every figure, of no data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

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
SERIES = ["#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#6e7681", "#a0522d"]
"""For what is no role: runs, experts, arms of one kind."""
PANEL = 250
"""Width of a panel in pixels, without its labels."""


def by_role(results: pd.DataFrame) -> alt.Color:
    present = [role for role in KINDS if role in set(results["role"])]
    return alt.Color("role:N", title=None, scale=alt.Scale(domain=present, range=[KINDS[role] for role in present]))


def by_series(field: str, title: str | None, order: list[str] | None = None) -> alt.Color:
    return alt.Color(f"{field}:N", title=title, sort=order, scale=alt.Scale(range=SERIES))


def arm_order(results: pd.DataFrame) -> list[str]:
    """Base, antiexpert, experts, tuned, static by weight, then the others as they come."""
    ranks = {role: rank for rank, role in enumerate(KINDS)}
    arms = results.drop_duplicates("arm").assign(rank=lambda frame: frame["role"].map(ranks))
    return list(arms.sort_values(["rank", "alpha"], kind="stable")["arm"])


def panels(layers: Iterable[Any], data: pd.DataFrame, title: str, columns: int, note: str = "") -> Any:
    """One panel for each task (column `panel`), in the order of the data, with scales of its own."""
    chart = alt.layer(*layers, data=data).properties(width=PANEL)
    order = list(dict.fromkeys(data["panel"]))
    facet = alt.Facet("panel:N", title=None, sort=order, header=alt.Header(labelFontSize=12, labelFontWeight="bold"))
    return finish(
        chart.facet(facet, columns=min(columns, len(order))).resolve_scale(x="independent", y="independent"),
        title,
        note,
    )


def finish(chart: Any, title: str, note: str = "") -> Any:
    """With its title, a line of notes below it, and sizes that are read at 400 pixels and on paper."""
    heading = alt.TitleParams(title, subtitle=note.split("\n") if note else [], anchor="start", fontSize=15)
    return (
        chart.properties(title=heading)
        .configure_axis(labelFontSize=12, titleFontSize=12, labelLimit=260, titleFontWeight="normal")
        .configure_legend(orient="bottom", labelFontSize=12, titleFontSize=12, columns=3, symbolLimit=0, labelLimit=220)
        .configure_title(subtitleFontSize=12, subtitleColor="#6e7681")
        .configure_view(stroke=None)
    )
