"""The figures of `reporting.charts` as drawings inside the page, whose style gives them its colours."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from proxytune.reporting.report.source import Run
from proxytune.reporting.report.text import visible

PANELS = 3
"""Panels of a figure side by side."""


def figures(runs: Sequence[Run]) -> dict[str, Markup]:
    """Name -> SVG, of the runs that have scores; none without any. Nothing in them is a script or a reference."""
    folders = [run.folder for run in runs if run.record.tasks]
    if not folders:
        return {}
    # Imported only now: altair alone takes a second.
    from proxytune.reporting.charts import charts
    from proxytune.reporting.drawing import drawn
    from proxytune.reporting.frames import frames

    made = charts([frames(folder) for folder in folders], columns=PANELS)
    return {name: Markup(visible(drawn(chart).decode("utf-8"))) for name, chart in made.items()}
