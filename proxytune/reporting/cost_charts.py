"""Figures of what a run cost: each task as a whole, and each arm. Used by `charts.charts`."""

from __future__ import annotations

import altair as alt
import pandas as pd

from proxytune.reporting.figure_style import SERIES, arm_order, by_role, by_series, panels
from proxytune.reporting.frames import Frames

_OF_TASKS = {
    "seconds": "seconds",
    "load_seconds": "seconds to load",
    "speed": "tokens per second",
    "gib": "peak memory, GiB",
}
"""Column -> panel."""


def charts(runs: dict[str, Frames], results: pd.DataFrame, columns: int) -> dict[str, alt.FacetChart | None]:
    """cost of tasks and arm_cost."""
    return {"cost": _tasks(runs, columns), "arm_cost": _arms(runs, results, columns)}


def _tasks(runs: dict[str, Frames], columns: int) -> alt.FacetChart | None:
    """Time, speed and memory of each task, of all arms together: they share the models' passes."""
    costs = pd.concat([one.costs.assign(run=run) for run, one in runs.items()], ignore_index=True)
    computed = costs["from_store"].fillna(0) == 0
    costs["speed"] = (costs["tokens"] / costs["seconds"]).where(computed)
    costs["gib"] = costs["memory"] / 2**30
    rows = costs.melt(["run", "task"], list(_OF_TASKS), "panel", "value").dropna(subset=["value"])
    if rows.empty:
        return None
    rows["panel"] = rows["panel"].map(_OF_TASKS)
    bars = _bars(rows, "task", list(dict.fromkeys(rows["task"])), runs)
    bars = bars.encode(color=by_series("run", "run", list(runs)) if len(runs) > 1 else alt.value(SERIES[0]))
    note = "All arms together, since they share the models' work."
    if partly := ", ".join(dict.fromkeys(costs.loc[~computed, "task"])):
        note += f"\nSome answers came from the store, so the times do not cover all the work: {partly}."
    return panels([bars], rows, "Cost of each task", columns, note)


def _arms(runs: dict[str, Frames], results: pd.DataFrame, columns: int) -> alt.FacetChart | None:
    """Speed of each arm on each task, and the size of the models that it needs."""
    costs = pd.concat([one.arm_costs.assign(run=run) for run, one in runs.items()], ignore_index=True)
    speeds = costs.assign(panel=costs["task"] + ": tokens per second", value=costs["speed"])
    sizes = costs.assign(panel="weights of its models, GiB", value=costs["weights"] / 2**30)
    sizes = sizes.sort_values("value", ascending=False).drop_duplicates(["run", "arm"])
    looks = results.drop_duplicates("arm").set_index("arm")[["role", "alpha"]]
    rows = pd.concat([speeds, sizes], ignore_index=True).dropna(subset=["value"]).join(looks, on="arm")
    if rows.empty:
        return None
    bars = _bars(rows, "arm", arm_order(rows), runs)
    bars = bars.encode(color=by_series("run", "run", list(runs)) if len(runs) > 1 else by_role(rows))
    note = "Estimated as if each arm had run alone: a model shared by several arms counts in full for each."
    return panels([bars], rows, "Cost of each arm", columns, note)


def _bars(rows: pd.DataFrame, field: str, order: list[str], runs: dict[str, Frames]) -> alt.Chart:
    """A bar for each of `field`, and for each run where there are several."""
    more = [alt.Tooltip(f"{name}:Q", format=".3g") for name in ("seconds", "tokens") if name in rows]
    bars = (
        alt.Chart()
        .mark_bar(height=alt.RelativeBandSize(0.7))
        .encode(
            x=alt.X("value:Q", title=None, axis=alt.Axis(tickCount=5)),
            y=alt.Y(f"{field}:N", title=None, sort=order),
            tooltip=["run", field, alt.Tooltip("value:Q", format=".3g"), *more],
        )
    )
    return bars.encode(yOffset=alt.YOffset("run:N", sort=list(runs))) if len(runs) > 1 else bars
