"""Figures of single tokens: the weights chosen, and what fusion changes. Used by `charts.charts` alone."""

from __future__ import annotations

import altair as alt
import pandas as pd

from proxytune.reporting.frames import Frames


def charts(runs: dict[str, Frames], results: pd.DataFrame, columns: int) -> dict[str, alt.Chart | None]:
    return {}
