"""One table of a paper: the printed figures, ours beside them, and both ways to sum up what fusion gains."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from proxytune.errors import UserError, unknown_name
from proxytune.record import read_record
from proxytune.reporting.papers.figures import KEYS, TableRun, measured, reference, run_of_experiment
from proxytune.reporting.papers.layouts import GAP, PAPERS, RELATIVE, Layout, Paper
from proxytune.reporting.papers.own import own_layout

SIDES = ("reference", "ours")
NAN = math.nan


@dataclass
class PaperTable:
    """Figures in percent, one a row: panel, arm, label, task, metric, better, reference, ours, stderr, n, differs,
    source, note. `differs` says what of the run's settings is not the paper's.

    Beside the tasks, `task` is "gap_closed" or "relative_performance". NaN: not printed, not measured or undefined.
    """

    paper: Paper
    layout: Layout
    figures: pd.DataFrame
    notes: list[str] = field(default_factory=list)

    @property
    def differences(self) -> list[str]:
        """What differs, each once: footnote 1, 2, ..."""
        return [text for text in self.figures["differs"].unique() if text]


def paper_tables(paper: str, runs: Iterable[Path | str] = (), table: str | None = None) -> list[PaperTable]:
    """The tables of `paper` ("liu2024" or "fan2024"), or the one named `table`, filled from `runs`.

    Args:
        runs: results.json files, or the folders that hold them, of the paper's experiments. Rows whose models, style,
            examples, limit, rule or seed are not those of the shipped experiment are marked with what differs.

    Raises:
        UserError: unknown paper or table; a run that is missing, unreadable or not of one of the paper's experiments.
    """
    chosen = _paper(paper)
    layouts = {layout.id: layout for layout in chosen.tables}
    if table is not None and table not in layouts:
        raise unknown_name(f"table of {paper}", table, layouts)
    known = {name for layout in chosen.tables for name in layout.experiments}
    given = [run_of_experiment(path) for path in runs]
    for run in given:
        if run.panel not in known:
            raise unknown_name(f"experiment of {paper}", run.panel, known)
    tables = [_fill(chosen, layout, given) for layout in layouts.values() if table in (None, layout.id)]
    return [filled for filled in tables if table is not None or not filled.figures.empty]


def own_table(paper: str, runs: Iterable[Path | str]) -> PaperTable:
    """The figures of `runs`, of any families and tasks and under their own names, in the layout of `paper`.

    Raises UserError for an unknown paper, no runs, and a run that is missing or unreadable.
    """
    chosen = _paper(paper)
    records = [read_record(path) for path in runs]
    if not any(record.tasks for record in records):
        raise UserError(f"layout={paper} needs runs=[FOLDER,...] that have results")
    layout, panels = own_layout(chosen, records)
    return _fill(chosen, layout, [TableRun(panel, record) for panel, record in zip(panels, records, strict=True)])


def _paper(name: str) -> Paper:
    if name not in PAPERS:
        raise unknown_name("paper", name, PAPERS)
    return PAPERS[name]


def _fill(paper: Paper, layout: Layout, runs: list[TableRun]) -> PaperTable:
    printed, ours = reference(paper, layout), measured(layout, runs)
    notes = [*_notes(printed), *_left_out(ours)]
    if ours.duplicated(KEYS).any():
        notes.append("Several runs measured the same cell: the first run given is shown.")
        ours = ours.drop_duplicates(KEYS)
    ours = _with_averages(layout, ours)
    figures = printed.merge(ours, on=KEYS, how="outer")
    figures["better"] = figures["better"].fillna(figures["direction"]).fillna("higher")
    figures = pd.concat([figures, _summaries(layout, figures, notes)], ignore_index=True)
    figures["differs"] = figures["differs"].fillna("")
    return PaperTable(paper, layout, _in_order(layout, figures), notes)


def _notes(printed: pd.DataFrame) -> list[str]:
    remarks = printed[printed["note"] != ""]
    return [f"{r.panel} {r.arm}, {r.task}: {r.note}." for r in remarks.itertuples()]


def _left_out(ours: pd.DataFrame) -> list[str]:
    """How many items count in no figure, because an endpoint names none of their options."""
    rows = ours[ours["left_out"] > 0]
    return [f"{r.panel} {r.arm}, {r.task}: {r.left_out} of {r.n} items were left out." for r in rows.itertuples()]


def _with_averages(layout: Layout, ours: pd.DataFrame) -> pd.DataFrame:
    """`ours` and the layout's averages, for the arms that have every part."""
    for name, parts in layout.averages.items():
        wide = ours.pivot(index=["panel", "arm"], columns="task", values="ours").reindex(columns=list(parts))
        mean = wide.dropna().mean(axis=1).rename("ours").reset_index()
        ours = pd.concat([ours, mean.assign(task=name)], ignore_index=True) if len(mean) else ours
    return ours


def _summaries(layout: Layout, figures: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """gap_closed and relative_performance, both sides, of every arm between base and tuned."""
    lower = set(figures.loc[figures["better"] == "lower", "task"])
    rows: dict[tuple[str, str, str], dict[str, float]] = {}
    for side in SIDES:
        cells: dict[tuple[str, str], dict[str, float]] = {}
        for panel, arm, task, value in figures.dropna(subset=[side])[[*KEYS, side]].itertuples(index=False):
            cells.setdefault((panel, arm), {})[task] = value
        for (panel, arm), row in cells.items():
            bound = layout.bounds.get(panel, "")
            base, tuned = cells.get((bound, "base")), cells.get((bound, layout.tuned))
            if arm in ("base", layout.tuned) or base is None or tuned is None:
                continue
            tasks = _tasks(layout, row, base, tuned)
            higher = [task for task in tasks if task not in lower]
            _say_partial(layout, side, tasks, notes)
            rows.setdefault((panel, arm, GAP), {})[side] = _gap(tasks, row, base, tuned)
            rows.setdefault((panel, arm, RELATIVE), {})[side] = _relative(higher, row, tuned)
    return pd.DataFrame([{**dict(zip(KEYS, key, strict=True)), "better": "higher", **v} for key, v in rows.items()])


def _tasks(layout: Layout, *rows: dict[str, float]) -> list[str]:
    """What a summary is taken over: the tasks that all `rows` have, or the printed average."""
    wanted = ["avg"] if layout.summary == "gap_of_means" else list(layout.tasks)
    return [task for task in wanted if all(task in row for row in rows)]


def _say_partial(layout: Layout, side: str, tasks: list[str], notes: list[str]) -> None:
    note = f"{side.capitalize()}: the summaries are over {', '.join(tasks)} only."
    if layout.summary == "mean_of_gaps" and 0 < len(tasks) < len(layout.tasks) and note not in notes:
        notes.append(note)


def _gap(tasks: list[str], row: dict[str, float], base: dict[str, float], tuned: dict[str, float]) -> float:
    """Mean over tasks of (row − base) / (tuned − base), in percent; NaN where undefined."""
    if not tasks or any(tuned[task] == base[task] for task in tasks):
        return NAN
    return 100 * sum((row[t] - base[t]) / (tuned[t] - base[t]) for t in tasks) / len(tasks)


def _relative(tasks: list[str], row: dict[str, float], tuned: dict[str, float]) -> float:
    """row / tuned of the averages over `tasks`, in percent; NaN where undefined."""
    total = sum(tuned[task] for task in tasks)
    return 100 * sum(row[task] for task in tasks) / total if total != 0 else NAN


def _in_order(layout: Layout, figures: pd.DataFrame) -> pd.DataFrame:
    """Rows in the paper's order with their labels, columns too; arms that the paper does not have come last."""
    measured_only = dict.fromkeys(zip(figures["panel"], figures["arm"], strict=True))
    labels = {**{key: " ".join(key) for key in measured_only}, **layout.rows}
    rows = {key: i for i, key in enumerate([*layout.rows, *(key for key in measured_only if key not in layout.rows)])}
    columns = {task: i for i, task in enumerate([*layout.tasks, GAP, RELATIVE])}
    keys = [(panel, arm) for panel, arm in zip(figures["panel"], figures["arm"], strict=True)]
    figures = figures.assign(
        label=[labels[key] for key in keys], row=[rows[key] for key in keys], column=figures["task"].map(columns)
    )
    order = [*KEYS[:2], "label", "task", "metric", "better", *SIDES, "stderr", "n", "differs", "source", "note"]
    return figures.sort_values(["row", "column"]).reindex(columns=order).reset_index(drop=True)
