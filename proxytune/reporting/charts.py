"""The figures of runs, each declared once over tidy frames: for the report, notebooks, W&B and files alike.

from proxytune.reporting import charts, frames
charts.charts([frames.frames("outputs/RUN")])["scores"].save("scores.svg")

Nothing here needs a browser or a network: vl-convert draws PNG, SVG and PDF.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import altair as alt
import pandas as pd

from proxytune.reporting import token_charts
from proxytune.reporting.figure_style import arm_order, by_role, by_series, panels
from proxytune.reporting.frames import Frames

ERRORS = "Lines are 95 % intervals."


def charts(frames: Sequence[Frames], columns: int = 2) -> dict[str, alt.Chart]:
    """The figures that the data of `frames` (one per run) allow, by name; `columns` panels stand side by side.

    Names: scores, gap_closed, alpha_sweep, static_dynamic, alpha_steps, alpha_distribution, changed_tokens,
    delta_position, cost.
    """
    runs = _distinct_names(frames)
    results = _headline(runs)
    made = {name: draw(results, columns) for name, draw in _OF_RESULTS.items()}
    made |= token_charts.charts(runs, results, columns)
    return {name: chart for name, chart in made.items() if chart is not None}


def _distinct_names(frames: Sequence[Frames]) -> dict[str, Frames]:
    """The runs by their folders' names; a number is added where two are called alike."""
    named: dict[str, Frames] = {}
    for one in frames:
        same = sum(other.run == one.run for other in named.values())
        named[f"{one.run} ({same + 1})" if same else one.run] = one
    return named


def _headline(runs: dict[str, Frames]) -> pd.DataFrame:
    """The headline metric of every task and arm, in percent where it is a fraction, with run, role and panel."""
    parts = [one.results[one.results["headline"]].assign(run=run) for run, one in runs.items()]
    rows = pd.concat(parts, ignore_index=True)
    scale = rows["fraction"].map({True: 100.0, False: 1.0})
    for name in ("value", "stderr", "low", "high"):
        rows[name] = rows[name] * scale
    for name in ("gap_closed", "gap_low", "gap_high"):
        rows[name] = rows[name] * 100
    static = rows["alpha"].notna().map({True: "fused, static", False: "fused, dynamic"})
    rows["role"] = rows["kind"].where(rows["kind"] != "fused", static)
    rows["panel"] = [_panel(row) for row in rows.itertuples()]
    return rows


def _panel(row: object) -> str:
    unit = ", %" if row.fraction else ""  # type: ignore[attr-defined]
    lower = "" if row.higher_is_better else ", lower is better"  # type: ignore[attr-defined]
    return f"{row.task}: {row.metric}{unit}{lower}"  # type: ignore[attr-defined]


def _scores(results: pd.DataFrame, columns: int) -> alt.Chart | None:
    rows = results.dropna(subset=["value"])
    if rows.empty:
        return None
    return _dots(rows, "value", "low", "high", "Score of each arm", columns, _notes("", results, rows))


def _gap_closed(results: pd.DataFrame, columns: int) -> alt.Chart | None:
    # The base's and the tuned model's own are 0 and 100 % by definition.
    results = results[results["gap_closed_method"] != "exact"]
    rows = results.dropna(subset=["gap_closed"])
    if rows.empty:
        return None
    note = _notes("0 % is the base, 100 % the tuned model", results, rows)
    rows = rows.assign(panel=rows["task"])
    title = "Gap between base and tuned that each arm closes, %"
    return _dots(rows, "gap_closed", "gap_low", "gap_high", title, columns, note, ends=(0.0, 100.0))


def _dots(
    rows: pd.DataFrame,
    value: str,
    low: str,
    high: str,
    title: str,
    columns: int,
    note: str,
    ends: Sequence[float] = (),
) -> alt.Chart:
    """Arms down, a dot with its interval each; with several runs a dot per run."""
    several = rows["run"].nunique() > 1
    arms = alt.Y("arm:N", sort=arm_order(rows), title=None)
    color = by_series("run", "run") if several else by_role(rows)
    base = alt.Chart().encode(y=arms, color=color)
    if several:
        base = base.encode(yOffset=alt.YOffset("run:N"))
    hover = ["run", "arm", alt.Tooltip(f"{value}:Q", format=".2f"), alt.Tooltip(f"{low}:Q", format=".2f")]
    hover += [alt.Tooltip(f"{high}:Q", format=".2f"), "n:Q"]
    scale = alt.Scale(zero=False, nice=True, padding=8)
    dot = base.mark_circle(size=70, opacity=1).encode(
        x=alt.X(f"{value}:Q", title=None, scale=scale, axis=alt.Axis(tickCount=5)), tooltip=hover
    )
    line = base.mark_rule(strokeWidth=2).encode(x=alt.X(f"{low}:Q", title=None), x2=f"{high}:Q")
    marks = [alt.Chart().mark_rule(color="#9aa0a6", strokeDash=[4, 3]).encode(x=alt.datum(end)) for end in ends]
    return panels([*marks, line, dot], rows, title, columns, note)


def _notes(text: str, results: pd.DataFrame, rows: pd.DataFrame) -> str:
    """What lines mean, `text`, and which of `results` are undefined and not among `rows`."""
    missing = results.drop(rows.index)
    cells = ", ".join(f"{arm} on {task}" for arm, task in zip(missing["arm"], missing["task"], strict=True))
    said = [ERRORS, f"{text}." if text else "", f"Undefined and left out: {cells}." if cells else ""]
    return "\n".join(filter(None, said))


_OF_RESULTS: dict[str, Callable[[pd.DataFrame, int], alt.Chart | None]] = {
    "scores": _scores,
    "gap_closed": _gap_closed,
}
