"""Two behaviours traded off: one task's metric against another's, as λ goes from one expert to the other.

Mitchell et al. 2024 (arXiv 2310.12962), section 4.3: base + λ (first − small) + (1 − λ) (second − small).
"""

from __future__ import annotations

from itertools import combinations

import altair as alt
import pandas as pd

from proxytune.reporting.figure_style import ERRORS, HEIGHT, KINDS, by_series, panels

_KEYS = ["run", "arm", "role", "balance"]
_VALUES = ["value", "low", "high"]


def frontier(results: pd.DataFrame, columns: int) -> alt.FacetChart | None:
    """A panel for each pair of tasks on which at least three λ were measured; the base is a point of its own."""
    known = results[results["balance"].notna() | (results["role"] == "base")].dropna(subset=["value"])
    pairs = [_pair(known, x, y) for x, y in combinations(dict.fromkeys(known["panel"]), 2)]
    rows = pd.concat([pair for pair in pairs if pair["balance"].nunique() >= 3] or [pd.DataFrame()], ignore_index=True)
    if rows.empty:
        return None
    return panels(_layers(rows), rows, "Two behaviours traded off by λ", columns, ERRORS, HEIGHT)


def _pair(known: pd.DataFrame, x: str, y: str) -> pd.DataFrame:
    """The arms measured on both tasks, with value_x, value_y and so on, by λ."""
    sides = [known.loc[known["panel"] == panel, [*_KEYS, *_VALUES]] for panel in (x, y)]
    both = sides[0].merge(sides[1], on=_KEYS, suffixes=("_x", "_y"))
    label = both["balance"].map("λ = {:.3g}".format).where(both["balance"].notna(), both["arm"])
    return both.assign(panel=f"→ {x}   ↑ {y}", label=label, swept=both["balance"].notna()).sort_values("balance")


def _layers(rows: pd.DataFrame) -> list[alt.Chart]:
    x = alt.X("value_x:Q", title=None, scale=alt.Scale(zero=False, nice=True, padding=12))
    y = alt.Y("value_y:Q", title=None, scale=alt.Scale(zero=False, nice=True, padding=12))
    runs = list(dict.fromkeys(rows["run"]))
    points = alt.Chart().encode(color=by_series("run", "run" if len(runs) > 1 else None, runs))
    errors = points.mark_rule(opacity=0.5)
    return [
        errors.encode(x=alt.X("low_x:Q", title=None), x2="high_x:Q", y=y),
        errors.encode(y=alt.Y("low_y:Q", title=None), y2="high_y:Q", x=x),
        points.transform_filter("datum.swept").mark_line(strokeWidth=2).encode(x=x, y=y, order="balance:Q"),
        points.mark_circle(size=60, opacity=1).encode(x=x, y=y, tooltip=["run", "arm", "label", "value_x", "value_y"]),
        points.mark_text(dx=6, dy=-8, align="left", color=KINDS["base"]).encode(x=x, y=y, text="label:N"),
    ]
