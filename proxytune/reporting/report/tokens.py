"""Traces of generated tokens in the page: in parts of a few items, which the script reads when one is shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pandas as pd

from proxytune.errors import UserError
from proxytune.reporting.frames import read_traces
from proxytune.reporting.report.samples import Samples
from proxytune.reporting.report.source import Run

PART = 32
"""Items of a part; the page's script knows it too."""
DIGITS = 4
ALPHA, TOP = "alpha_", "top_"
"""How the columns of a trace begin that are there for each expert and each model."""


def token_parts(samples: Samples, runs: Sequence[Run]) -> list[dict[str, object]]:
    """Part i has the traces of items 32 i to 32 i + 31; no parts if there is no trace.

    {"texts": [text], "traces": {item: {column: trace}}}, items and columns by their places in `samples`. A trace has an
    entry per token: {"tokens", "fused", "base", "changed", "alpha": {expert: []}, "top": {model: [[token, p, ...]]}};
    tokens are places in `texts`.
    """
    parts = [_Part() for _ in range(0, len(samples.items), PART)]
    columns = {key: place for place, key in enumerate(samples.arms)}
    for number, run in enumerate(runs):
        for (arm, item), rows in _traces(run, samples.task):
            place, column = samples.places.get((number, str(item))), columns.get((number, str(arm)))
            if place is not None and column is not None:
                parts[place // PART].add(place, column, rows)
    return [part.content() for part in parts] if any(part.traces for part in parts) else []


def _traces(run: Run, task: str) -> Iterator[tuple[Any, pd.DataFrame]]:
    """(arm, item) -> its tokens in order."""
    try:
        traces = read_traces(run.folder, task)
    except UserError as error:
        run.missing.append(f"The traces of {task} are missing: {error}.")
        return
    if not traces.empty:
        yield from traces.groupby(["arm", "item"], observed=True, sort=False)


class _Part:
    def __init__(self) -> None:
        self.traces: dict[int, dict[int, dict[str, object]]] = {}
        self._texts: dict[str, int] = {}

    def content(self) -> dict[str, object]:
        return {"texts": list(self._texts), "traces": self.traces}

    def add(self, item: int, column: int, rows: pd.DataFrame) -> None:
        trace = {
            "tokens": [self._place(text) for text in rows["text"]],
            "fused": _numbers(rows["p_fused"]),
            "base": _numbers(rows["p_base"]),
            "changed": [int(differs is True or differs == 1) for differs in rows["differs"]],
            "alpha": self._by_name(rows, ALPHA, _numbers),
            "top": self._by_name(rows, TOP, self._tops),
        }
        self.traces.setdefault(item, {})[column] = {name: value for name, value in trace.items() if value}

    def _by_name(self, rows: pd.DataFrame, start: str, entries: Callable[[pd.Series], object]) -> dict[str, object]:
        """Of the experts or models that the arm has."""
        names = [name for name in rows.columns if name.startswith(start) and rows[name].notna().any()]
        return {name.removeprefix(start): entries(rows[name]) for name in names}

    def _tops(self, column: pd.Series) -> list[list[float | None]]:
        return [
            [entry for one in tops for entry in (self._place(one["text"]), _rounded(one["p"]))]
            if tops is not None
            else []
            for tops in column
        ]

    def _place(self, text: str) -> int:
        return self._texts.setdefault(text, len(self._texts))


def _numbers(column: pd.Series) -> list[float | None]:
    """Empty if none is known."""
    return [_rounded(value) for value in column.tolist()] if column.notna().any() else []


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), DIGITS)
