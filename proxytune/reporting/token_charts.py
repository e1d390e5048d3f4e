"""Figures of single tokens: the weights that rules choose, and what fusion changes. Used by `charts.charts`."""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd

from proxytune.reporting.columns import NORMAL_95
from proxytune.reporting.figure_style import bands, dots, notes, panels
from proxytune.reporting.frames import Frames
from proxytune.statistics import ratio_error

BINS = 20
"""Of the distribution of weights, over the range of all."""
_REACHED = 0.1
"""The share of answers that must reach a step for it to be drawn: a mean over a few long answers only misleads."""
_QUARTERS = "Bands hold the middle half of the answers; steps that fewer than a tenth of them reach are left out."


def charts(runs: dict[str, Frames], results: pd.DataFrame, columns: int) -> dict[str, alt.FacetChart | None]:
    """alpha_steps and alpha_distribution from the items, changed_tokens and delta_position from the traces."""
    weights = _chosen(runs)
    traces = _of_fused(runs)
    return {
        "alpha_steps": _alpha_steps(weights, columns),
        "alpha_distribution": _alpha_distribution(weights, columns),
        "changed_tokens": _changed_tokens(traces, results, columns),
        "delta_position": _delta_position(traces, columns),
    }


def _chosen(runs: dict[str, Frames]) -> pd.DataFrame:
    """The weights of arms that choose them anew at each token."""
    frame = _concatenated({run: one.weights for run, one in runs.items()}, runs)
    varies = frame.groupby(["task", "arm"])["alpha"].transform("nunique") > 1
    return frame[varies & np.isfinite(frame["alpha"])]


def _of_fused(runs: dict[str, Frames]) -> pd.DataFrame:
    """The traced tokens of arms with a base, with their `delta`."""
    frame = _concatenated({run: one.traces for run, one in runs.items()}, runs).dropna(subset=["p_base"])
    return frame.assign(
        delta=(frame["p_fused"] - frame["p_base"]).astype(float), differs=frame["differs"].astype(float)
    )


def _concatenated(parts: dict[str, pd.DataFrame], runs: dict[str, Frames]) -> pd.DataFrame:
    """One frame; the names of arms tell the runs apart where there are several."""
    several = len(runs) > 1
    named = [
        part.assign(run=run, arm=part["arm"] + f" ({run})" if several else part["arm"])
        for run, part in parts.items()
        if not part.empty or not several
    ]
    return pd.concat(named or list(parts.values()), ignore_index=True)


def _alpha_steps(weights: pd.DataFrame, columns: int) -> alt.FacetChart | None:
    """One panel for each task and arm, one line for each expert."""
    generated = weights[weights["generated"]]
    if generated.empty:
        return None
    rows = _by_step(generated, ["task", "arm", "expert"], "alpha")
    rows = rows.assign(panel=rows["task"] + ": " + rows["arm"], series=rows["expert"])
    return bands(rows, "α", "Weight α at each token of the answer", columns, _QUARTERS)


def _delta_position(traces: pd.DataFrame, columns: int) -> alt.FacetChart | None:
    if traces.empty:
        return None
    rows = _by_step(traces, ["task", "arm"], "delta")
    rows = rows.assign(panel=rows["task"], series=rows["arm"])
    return bands(rows, "p fused − p base", "Probability that fusion adds to the token it chooses", columns, _QUARTERS)


def _by_step(frame: pd.DataFrame, keys: list[str], value: str) -> pd.DataFrame:
    """Mean, quartiles and n of `value` at each step, counted from 1, that enough answers reach."""
    steps = frame.groupby([*keys, "step"], sort=False)[value]
    rows = steps.agg(
        mean="mean", low=lambda x: x.quantile(0.25), high=lambda x: x.quantile(0.75), n="size"
    ).reset_index()
    enough = rows["n"] >= _REACHED * rows.groupby(keys)["n"].transform("max")
    return rows[enough].assign(step=lambda part: part["step"] + 1)


def _alpha_distribution(weights: pd.DataFrame, columns: int) -> alt.FacetChart | None:
    """One panel for each task, one row for each arm and expert; darker where more of the tokens are."""
    if weights.empty:
        return None
    edges = np.linspace(weights["alpha"].min(), weights["alpha"].max(), BINS + 1)
    inside = np.clip(np.searchsorted(edges, weights["alpha"], side="right") - 1, 0, BINS - 1)
    several = weights.groupby(["task", "arm"])["expert"].transform("nunique") > 1
    weights = weights.assign(
        low=edges[inside],
        high=edges[inside + 1],
        row=weights["arm"].where(~several, weights["arm"] + ": " + weights["expert"]),
    )
    rows = weights.groupby(["task", "row", "low", "high"], sort=False).size().rename("tokens").reset_index()
    rows["share"] = 100 * rows["tokens"] / rows.groupby(["task", "row"])["tokens"].transform("sum")
    rows["panel"] = rows["task"]
    marks = (
        alt.Chart()
        .mark_rect()
        .encode(
            x=alt.X("low:Q", title="α", scale=alt.Scale(nice=False)),
            x2="high:Q",
            y=alt.Y("row:N", title=None, sort=list(dict.fromkeys(rows["row"]))),
            color=alt.Color(
                "share:Q", title="% of tokens", scale=alt.Scale(scheme="blues", domain=[0, 100], type="sqrt")
            ),
            tooltip=["row", alt.Tooltip("low:Q", format=".2f"), alt.Tooltip("high:Q", format=".2f"), "tokens:Q"],
        )
    )
    return panels([marks], rows, "Distribution of the weight α over all tokens", columns)


def _changed_tokens(traces: pd.DataFrame, results: pd.DataFrame, columns: int) -> alt.FacetChart | None:
    """Share of the tokens for which the base had another first choice; the interval is clustered by item."""
    if traces.empty:
        return None
    items = traces.groupby(["run", "task", "arm", "item"], sort=False)["differs"].agg(["sum", "size"])
    rows = items.groupby(["run", "task", "arm"], sort=False).apply(_share).reset_index()
    looks = results.drop_duplicates("arm").set_index("arm")[["role", "alpha"]]
    rows = rows.join(looks, on="arm").assign(panel=rows["task"])
    rows["role"] = rows["role"].fillna("fused, dynamic")
    title = "Tokens that are not the base's own choice, %"
    return dots(rows, ("share", "low", "high"), title, columns, notes("", rows, rows))


def _share(items: pd.DataFrame) -> pd.Series:
    """In percent, of the tokens of all items; the error is that of a ratio of sums over items."""
    changed, tokens = items["sum"].to_numpy(float), items["size"].to_numpy(float)
    share, error = changed.sum() / tokens.sum(), ratio_error(changed, tokens)
    low, high = max(0.0, share - NORMAL_95 * error), min(1.0, share + NORMAL_95 * error)
    return pd.Series({"share": 100 * share, "low": 100 * low, "high": 100 * high, "n": tokens.sum()})
