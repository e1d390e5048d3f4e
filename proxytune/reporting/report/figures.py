"""The figures of `reporting.charts` as drawings inside the page, whose style gives them its colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd
from markupsafe import Markup

from proxytune.errors import UserError
from proxytune.reporting.report.source import Run
from proxytune.reporting.report.text import visible

if TYPE_CHECKING:
    from proxytune.reporting.frames import Frames

PANELS = 3
"""Panels of a figure side by side."""
SHOWN = {"task", "arm", "expert", "experts"}
"""Columns of texts that figures show."""


def figures(runs: Sequence[Run], names: Sequence[str]) -> dict[str, Markup]:
    """Name -> SVG, of the runs that have scores; none without any. Nothing in them is a script or a reference."""
    named = zip(runs, names, strict=True)
    known = [replace(one, run=visible(name)) for run, name in named if run.record.tasks for one in _frames(run)]
    if not known:
        return {}
    # Imported only now: altair alone takes a second.
    from proxytune.reporting.charts import charts, drawn

    made = charts(known, columns=PANELS)
    return {name: Markup(drawn(chart).decode("utf-8")) for name, chart in made.items()}


def _frames(run: Run) -> list[Frames]:
    """The run's frames; none, which the report then says, if a file of them cannot be read."""
    from proxytune.reporting.frames import frames

    try:
        found = frames(run.folder)
    except UserError as error:
        run.missing.append(f"The figures are without this run: {error}.")
        return []
    # Characters that end a line end an expression of Vega too.
    names = ("results", "items", "weights", "traces", "costs", "arm_costs")
    shown: dict[str, Any] = {name: _visible(getattr(found, name)) for name in names}
    return [replace(found, **shown)]


def _visible(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(**{name: table[name].map(visible) for name in table.columns if name in SHOWN})
