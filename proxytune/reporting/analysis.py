"""What fusion changes, token by token, from the traces of runs: Liu et al. 2024 (arXiv 2401.08565), section 6.1.

from proxytune.reporting import analysis, frames
analysis.analyze([frames.frames("outputs/RUN")])["shift"]

Δ is p_fused − p_base of the token that the arm chose. Errors are clustered by item.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from rich.console import Console
from rich.text import Text

from proxytune.errors import UserError
from proxytune.reporting.frames import Frames
from proxytune.reporting.papers.figures import reference_folder
from proxytune.reporting.terminal import plain_table, show_notes
from proxytune.statistics import ratio_error

ARM = ["run", "task", "arm"]
POSITIONS = {"first": (0, 0), "2 to 5": (1, 4), "6 to 20": (5, 19), "later": (20, math.inf)}
"""Ranges of tokens, by step from 0."""
LISTED = 10
"""How many of the most influenced tokens are listed."""
OFTEN = 3
"""How often a token must be chosen to be listed."""
PAPER = "Liu et al. 2024"
PAPER_TASKS = ("gsm8k", "truthfulqa", "toxigen", "alpacafarm")
"""Beginnings of tasks' names, by which the paper's figures name them too."""
SIDES = ("left", "right")
"""Of an equation."""
_EQUATION = re.compile(r"(?P<left>[\d($][\d\s.,+\-*/×÷x()$%]*)=\s*(?P<right>\$?\d+(?:[.,]\d+)*)")
_OPERATOR = re.compile(r"[\d)%]\s*[+\-*/×÷x]\s*[\d($]")
TableRows = list[tuple[tuple[str, ...], list[str]]]
"""Of a table: run, task and arm, and the other cells."""


def analyze(frames: Sequence[Frames]) -> dict[str, pd.DataFrame]:
    """Tidy frames by name, each with a row per run, task and arm, and what it is about:

    - shift: tokens, changed (share of tokens that are not the base's own choice), delta, and their standard errors;
    - positions: delta at the first token, the 2nd to the 5th, and so on;
    - changed: the share of tokens changed at these positions;
    - equations: delta on the left and on the right sides of equations, where answers have any;
    - tokens: the tokens with the largest mean delta, of those chosen at least three times;
    - weights: the mean weight of each expert at these positions.

    Raises UserError where no fused arm was traced.
    """
    parts = [one.traces.assign(run=one.run) for one in frames if not one.traces.empty]
    traced = pd.concat(parts, ignore_index=True).dropna(subset=["p_base"]) if parts else pd.DataFrame()
    if traced.empty:
        raise UserError("no fused arm of these runs was traced: run them with trace=summary")
    delta = traced["p_fused"].astype(float) - traced["p_base"].astype(float)
    traced = traced.assign(delta=delta, changed=traced["differs"].astype(float), position=_positions(traced["step"]))
    return {
        "shift": _shift(traced),
        "positions": _means(traced, [*ARM, "position"], "delta"),
        "changed": _means(traced, [*ARM, "position"], "changed"),
        "equations": _means(_with_sides(traced), [*ARM, "side"], "delta"),
        "tokens": _most_influenced(traced),
        "weights": _weights(traced),
    }


def printed(quantity: str) -> dict[str, float]:
    """Task -> the paper's own figure, as for "top token changed" or "probability shift, left side of equations"."""
    rows = pd.read_csv(reference_folder() / "liu2024_token_shift.csv")
    rows = rows[rows["quantity"] == quantity]
    return dict(zip(rows["task"], rows["value"].where(rows["unit"] != "percent", rows["value"] / 100), strict=True))


def in_paper(task: str, paper: Mapping[str, float]) -> str | None:
    """The task's name among the `paper`'s own figures; None where there is none."""
    return next((name for name in PAPER_TASKS if task.startswith(name) and name in paper), None)


def _positions(steps: pd.Series) -> pd.Series:
    edges = [-1.0, *(last for _, last in POSITIONS.values())]
    return pd.cut(steps, edges, labels=list(POSITIONS)).astype(str)


def _shift(traced: pd.DataFrame) -> pd.DataFrame:
    changed = _means(traced, ARM, "changed").rename(columns={"stderr": "changed_stderr"})
    delta = _means(traced, ARM, "delta").rename(columns={"stderr": "delta_stderr"})
    return changed.merge(delta.drop(columns="tokens"), on=ARM)


def _means(rows: pd.DataFrame, keys: list[str], value: str) -> pd.DataFrame:
    """`keys`, tokens, `value` (the mean over tokens) and stderr, in the order of `rows`."""
    made = []
    for key, part in rows.groupby(keys, sort=False):
        sums, sizes = part.groupby("item")[value].agg(["sum", "size"]).to_numpy(float).T
        made.append((*key, len(part), part[value].mean(), ratio_error(sums, sizes)))
    return pd.DataFrame(made, columns=[*keys, "tokens", value, "stderr"])


def _with_sides(traced: pd.DataFrame) -> pd.DataFrame:
    """The tokens of equations, with side "left" or "right"; the sign between them belongs to neither."""
    sides = [
        pd.Series(_sides(answer["text"].astype(str).to_list()), index=answer.index, dtype=object)
        for _, answer in traced.groupby([*ARM, "item", "request"], sort=False)
    ]
    return traced.assign(side=pd.concat(sides)).dropna(subset=["side"])


def _sides(pieces: Sequence[str]) -> list[str | None]:
    """For each piece of an answer, the side of an equation that it has a character of, if any."""
    text = "".join(pieces)
    side: list[str | None] = [None] * len(text)
    for equation in _EQUATION.finditer(text):
        if _OPERATOR.search(equation["left"]):
            for name in SIDES:
                start, end = equation.span(name)
                side[start:end] = [name] * (end - start)
    ends = list(itertools.accumulate(map(len, pieces)))
    starts = (end - len(piece.lstrip()) for piece, end in zip(pieces, ends, strict=True))
    return [next(filter(None, side[start:end]), None) for start, end in zip(starts, ends, strict=True)]


def _most_influenced(traced: pd.DataFrame) -> pd.DataFrame:
    """Per run, task and arm the LISTED tokens with the largest mean delta."""
    rows = _means(traced, [*ARM, "token", "text"], "delta")
    arms = rows[rows["tokens"] >= OFTEN].groupby(ARM, sort=False)
    return pd.concat([rows.iloc[:0], *(part.nlargest(LISTED, "delta") for _, part in arms)], ignore_index=True)


def _weights(traced: pd.DataFrame) -> pd.DataFrame:
    experts = [name for name in traced.columns if name.startswith("alpha_")]
    long = traced.melt([*ARM, "item", "position"], experts, "expert", "alpha", ignore_index=False)
    long = long.sort_index(kind="stable").dropna(subset=["alpha"])
    long["expert"] = long["expert"].str.removeprefix("alpha_")
    return _means(long, [*ARM, "expert", "position"], "alpha")


def show_analysis(analysis: Mapping[str, pd.DataFrame], console: Console) -> None:
    """Prints one table per quantity; a run's name is shown where there are several runs."""
    several = analysis["shift"]["run"].nunique() > 1
    for title, headings, rows in _tables(analysis):
        table = plain_table(title)
        names = ["run", "task", "arm", *headings] if several else ["task", "arm", *headings]
        for name in names:
            table.add_column(name, justify="left" if name in (*ARM, "expert", "tokens, mean Δ") else "right")
        for key, cells in rows:
            table.add_row(*(Text(cell) for cell in (*(key if several else key[1:]), *cells)))
        console.print(table)
    show_notes(console, "Δ = p_fused − p_base of the chosen token; mean ± standard error, clustered by item.")


def _tables(analysis: Mapping[str, pd.DataFrame]) -> Iterable[tuple[str, Sequence[str], TableRows]]:
    yield "What fusion changes", ("tokens", "changed, %", "Δ"), _shift_rows(analysis["shift"])
    yield (
        "Δ by the token's position",
        tuple(POSITIONS),
        _wide(analysis["positions"], ARM, "position", "delta", POSITIONS),
    )
    changed = analysis["changed"].assign(**{name: 100 * analysis["changed"][name] for name in ("changed", "stderr")})
    yield "Tokens changed by position, %", tuple(POSITIONS), _wide(changed, ARM, "position", "changed", POSITIONS, 1)
    if len(analysis["equations"]):
        yield "Δ in equations", SIDES, _equations(analysis["equations"])
    yield "Most influenced tokens", ("tokens, mean Δ",), _tokens(analysis["tokens"])
    keys = [*ARM, "expert"]
    weights = _wide(analysis["weights"], keys, "position", "alpha", POSITIONS)
    yield "Weight α by position", ("expert", *POSITIONS), [(key[:3], [key[3], *cells]) for key, cells in weights]


def _shift_rows(shift: pd.DataFrame) -> TableRows:
    rows: TableRows = []
    for row in shift.to_dict("records"):
        changed = _number(100 * row["changed"], 100 * row["changed_stderr"], 1)
        delta = _number(row["delta"], row["delta_stderr"], 3)
        rows.append((_key(row), [f"{row['tokens']:,}", changed, delta]))
    paper = printed("top token changed")
    return rows + [((*key, PAPER), ["", f"{100 * paper[name]:.1f}", ""]) for key, name in _in_paper(shift, paper)]


def _key(row: Mapping[Hashable, Any]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in ARM)


def _equations(equations: pd.DataFrame) -> TableRows:
    paper = {side: printed(f"probability shift, {side} side of equations") for side in SIDES}
    shown = _in_paper(equations, paper["left"])
    return _wide(equations, ARM, "side", "delta", SIDES) + [
        ((*key, PAPER), [f"{paper[side][name]:.3f}" for side in SIDES]) for key, name in shown
    ]


def _in_paper(frame: pd.DataFrame, paper: Mapping[str, float]) -> list[tuple[tuple[str, str], str]]:
    """(run, task) and the task's name in the paper, where the paper has a figure for it."""
    tasks = frame[["run", "task"]].drop_duplicates().itertuples(index=False)
    named = [((run, task), in_paper(task, paper)) for run, task in tasks]
    return [(key, name) for key, name in named if name is not None]


def _tokens(tokens: pd.DataFrame) -> TableRows:
    listed: dict[tuple[str, ...], list[str]] = {}
    for row in tokens.to_dict("records"):
        listed.setdefault(_key(row), []).append(f"{row['text']!r} {row['delta']:+.2f}")
    return [(key, [", ".join(said)]) for key, said in listed.items()]


def _wide(
    frame: pd.DataFrame, keys: list[str], column: str, value: str, order: Iterable[str], digits: int = 3
) -> TableRows:
    """One row per `keys`, one cell per value of `column`; empty where there is none."""
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for row in frame.to_dict("records"):
        cells = rows.setdefault(tuple(str(row[name]) for name in keys), {})
        cells[row[column]] = _number(row[value], row["stderr"], digits)
    return [(key, [cells.get(name, "") for name in order]) for key, cells in rows.items()]


def _number(value: float, error: float, digits: int) -> str:
    return f"{value:z.{digits}f}" + ("" if pd.isna(error) else f" ± {error:.{digits}f}")
