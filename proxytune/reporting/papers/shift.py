"""What fusion changes, token by token, beside the figures of Liu et al. 2024 (arXiv 2401.08565), section 6.1."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import pandas as pd

from proxytune.reporting.analysis import PAPER, SIDES, analyze, in_paper, printed
from proxytune.reporting.columns import NORMAL_95
from proxytune.reporting.figure_style import panels
from proxytune.reporting.frames import Frames
from proxytune.reporting.papers.chart import OURS, beside


def shift_charts(frames: Sequence[Frames], columns: int = 2) -> dict[str, alt.FacetChart]:
    """liu2024_changed_tokens, if a fused arm was traced on one of the paper's tasks."""
    if all(one.traces.empty or one.traces["p_base"].isna().all() for one in frames):
        return {}
    found = analyze(frames)
    shift = found["shift"].rename(columns={"changed_stderr": "stderr"})
    parts = [_beside(shift, "changed", "top token changed", "tokens changed, %", 100)]
    for side in SIDES:
        rows = found["equations"][found["equations"]["side"] == side]
        quantity = f"probability shift, {side} side of equations"
        parts.append(_beside(rows, "delta", quantity, f"Δ on the {side} of equations", 1))
    points = pd.concat(parts, ignore_index=True)
    if points.empty:
        return {}
    order = list(dict.fromkeys(points["label"]))
    note = "Lines are 95 % intervals, clustered by item. The paper gives no errors."
    title = "What fusion changes, beside the paper's figures"
    return {"liu2024_changed_tokens": panels(beside(PAPER, order), points, title, columns, note)}


def _beside(rows: pd.DataFrame, value: str, quantity: str, title: str, scale: float) -> pd.DataFrame:
    """Our arms' points on the paper's tasks, and the paper's own; a panel for each task."""
    paper = printed(quantity)
    known = rows["task"].map(lambda task: in_paper(task, paper))
    rows = rows.assign(theirs=known.map(paper)).dropna(subset=["theirs"])
    several = rows["run"].nunique() > 1
    ours = pd.DataFrame(
        {
            "label": rows["arm"] + (" (" + rows["run"] + ")" if several else ""),
            "panel": rows["task"] + ": " + title,
            "value": scale * rows[value],
            "stderr": scale * rows["stderr"],
            "n": rows["tokens"],
            "source": OURS,
        }
    )
    half = NORMAL_95 * ours["stderr"]
    ours = ours.assign(low=ours["value"] - half, high=ours["value"] + half)
    tasks = rows.drop_duplicates("task")
    theirs = pd.DataFrame(
        {
            "label": PAPER,
            "panel": tasks["task"] + ": " + title,
            "value": scale * tasks["theirs"],
            "source": PAPER,
        }
    )
    return pd.concat([ours, theirs], ignore_index=True)
