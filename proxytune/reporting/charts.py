"""The figures of runs, each declared once over tidy frames: for the report, notebooks, W&B and files alike.

from proxytune.reporting.charts import charts
from proxytune.reporting.frames import frames
charts([frames("outputs/RUN")])["scores"].save("scores.svg")

vl-convert draws them as PNG, SVG or PDF files, without a browser or a network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import altair as alt
import pandas as pd
import vl_convert

from proxytune.atomic import atomic_write
from proxytune.errors import UserError
from proxytune.reporting import cost_charts, token_charts
from proxytune.reporting.figure_style import HEIGHT, KINDS, by_series, dots, notes, panels
from proxytune.reporting.frames import Frames
from proxytune.reporting.frontier import frontier


def charts(frames: Sequence[Frames], columns: int = 2) -> dict[str, alt.FacetChart]:
    """The figures that the data of `frames` (one per run) allow, by name; `columns` panels stand side by side.

    Names: scores, gap_closed, alpha_sweep, static_dynamic, frontier, alpha_steps, alpha_distribution, changed_tokens,
    delta_position, cost, arm_cost.
    """
    runs = _distinct_names(frames)
    results = _headline(runs)
    made = {name: draw(results, columns) for name, draw in _OF_RESULTS.items()}
    made |= token_charts.charts(runs, results, columns)
    made |= cost_charts.charts(runs, results, columns)
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
    unit = rows["fraction"].map({True: ", %", False: ""})
    better = rows["higher_is_better"].map({True: "", False: ", lower is better"})
    rows["panel"] = rows["task"] + ": " + rows["metric"] + unit + better
    return rows


_DASHES = [[6, 3], [2, 2], [8, 2, 2, 2], [1, 3]]


def _scores(results: pd.DataFrame, columns: int) -> alt.FacetChart | None:
    rows = results.dropna(subset=["value"])
    if rows.empty:
        return None
    return dots(rows, ("value", "low", "high"), "Score of each arm", columns, notes("", results, rows))


def _gap_closed(results: pd.DataFrame, columns: int) -> alt.FacetChart | None:
    # The base's and the tuned model's own are 0 and 100 % by definition.
    results = results[results["gap_closed_method"] != "exact"].assign(panel=results["task"])
    rows = results.dropna(subset=["gap_closed"])
    if rows.empty:
        return None
    title = "Gap between base and tuned that each arm closes, %"
    note = notes("0 % is the base, 100 % the tuned model", results, rows)
    return dots(rows, ("gap_closed", "gap_low", "gap_high"), title, columns, note, ends=(0.0, 100.0))


def _alpha_sweep(results: pd.DataFrame, columns: int) -> alt.FacetChart | None:
    """The metric over the weight of static rules; base is weight 0. Other fused arms and tuned are horizontal lines."""
    static = _static(results)
    if static.empty or static.groupby(["panel", "series"])["alpha"].nunique().max() < 3:
        return None
    level = results[results["panel"].isin(static["panel"]) & results["role"].isin(["tuned", "fused, dynamic"])]
    level = level.dropna(subset=["value"]).drop_duplicates(["panel", "arm", "members", "value", "n"])
    rows = pd.concat([static.assign(level=False), level.assign(level=True, series=level["arm"])], ignore_index=True)
    rows = rows.sort_values("panel", key=lambda panel: panel.map(list(results["panel"]).index), kind="stable")
    known = {"static": KINDS["fused, static"], "tuned": KINDS["tuned"], "dynamic": KINDS["fused, dynamic"]}
    lines = alt.Chart().encode(color=by_series("series", None, list(dict.fromkeys(rows["series"])), known))
    swept = lines.transform_filter("!datum.level")
    y = alt.Y("value:Q", title=None, scale=alt.Scale(zero=False, nice=True))
    x = alt.X("alpha:Q", title="α (weight of the expert)", scale=alt.Scale(nice=True), axis=alt.Axis(tickCount=5))
    hover = [
        "run",
        "arm",
        alt.Tooltip("alpha:Q"),
        *(alt.Tooltip(f"{n}:Q", format=".2f") for n in ("value", "low", "high")),
    ]
    layers = [
        lines.transform_filter("datum.level")
        .mark_rule(strokeWidth=2)
        .encode(y=y, strokeDash=alt.StrokeDash("arm:N", legend=None, scale=alt.Scale(range=_DASHES)), tooltip=hover),
        swept.mark_rule(strokeWidth=1.5, opacity=0.6).encode(x=x, y=alt.Y("low:Q", title=None), y2="high:Q"),
        swept.mark_line(strokeWidth=2).encode(x=x, y=y),
        swept.mark_circle(size=60, opacity=1).encode(x=x, y=y, tooltip=hover),
    ]
    note = "α = 0 is the base. Bars are 95 % intervals; dashed: arms without a fixed weight."
    return panels(layers, rows, "Score over the weight α", columns, note, HEIGHT)


def _static(results: pd.DataFrame) -> pd.DataFrame:
    """The arms of static weights, each series (rule and number of experts) with the base as weight 0.

    Runs of the same models are one series, unless they differ in what they measured at the same weight.
    """
    static = results[(results["rule"] == "static") & results["alpha"].notna()].dropna(subset=["value"])
    experts = static["experts"].str.count(",") + 1
    series = ["static" if n == 1 else f"static, {n} experts" for n in experts]
    static = static.assign(series=series).astype({"series": object})  # of no row at all it would be numbers
    base = results[results["role"] == "base"].dropna(subset=["value"]).assign(alpha=0.0)
    keys = static[["run", "panel", "series"]].drop_duplicates()
    rows = pd.concat([static, keys.merge(base, on=["run", "panel"])], ignore_index=True)
    members = static.groupby(["panel", "series"])["members"].nunique()
    values = rows.groupby(["panel", "series", "alpha"])["value"].nunique()
    differ = {key[1] for counts in (members, values) for key in counts[counts > 1].index}
    apart = rows["series"].isin(differ)
    rows["series"] = rows["series"].where(~apart, rows["series"] + " (" + rows["run"] + ")")
    return rows.drop_duplicates(["panel", "series", "alpha", "value", "n"]).sort_values("alpha")


def _static_dynamic(results: pd.DataFrame, columns: int) -> alt.FacetChart | None:
    """Bars of all fused arms beside base and tuned, on the tasks that have arms of both kinds."""
    known = results.dropna(subset=["value"])
    fused = known[known["kind"] == "fused"]
    both = fused.groupby("task")["role"].nunique() > 1
    compared = known["kind"].isin(["fused", "base", "tuned"]) & known["task"].isin(both.index[both])
    rows = known[compared]
    if rows.empty:
        return None
    title = "Static against dynamic weights"
    return dots(rows, ("value", "low", "high"), title, columns, notes("", rows, rows), bars=True)


_OF_RESULTS: dict[str, Callable[[pd.DataFrame, int], alt.FacetChart | None]] = {
    "scores": _scores,
    "gap_closed": _gap_closed,
    "alpha_sweep": _alpha_sweep,
    "static_dynamic": _static_dynamic,
    "frontier": frontier,
}


_SCALE = 2.0
"""Pixels of a PNG file for each of the figure's."""


def drawn(chart: alt.FacetChart, format: str = "svg") -> bytes:
    """The content of the figure's file; raises UserError for a format other than svg, png and pdf."""
    declaration = chart.to_dict()
    if format == "svg":
        return vl_convert.vegalite_to_svg(declaration).encode()
    if format == "png":
        return vl_convert.vegalite_to_png(declaration, scale=_SCALE)
    if format == "pdf":
        return vl_convert.vegalite_to_pdf(declaration)
    raise UserError(f"format={format} is not allowed: it is svg, png or pdf")


def write_figures(charts: Mapping[str, alt.FacetChart], folder: Path, format: str = "svg") -> Iterator[Path]:
    """Writes each chart to `<name>.<format>` in `folder`, complete or not at all, and yields the path.

    Raises UserError for another format, and for a folder that cannot be written to.
    """
    for name, chart in charts.items():
        path = folder / f"{name}.{format}"
        content = drawn(chart, format)
        with atomic_write(path, binary=True) as file:
            file.write(content)
        yield path
