"""A record as tables of text, arms down and tasks across, with a numbered note for everything that is not a number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

Record = Mapping[str, Any]
"""As written to `results.json`: see `proxytune.experiment.run`."""

Tasks = Mapping[str, Record]

UNSCALED = {"perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "bits", "bleu", "chrf", "ter"}
"""Metrics that are not fractions: shown as they are, while all others are shown in percent points."""
LEGEND = "Gap closed = (arm − base) / (tuned − base). Bold: the best fused arm of each task."
DIGITS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Cell:
    text: str
    number: float | None = None
    """What the row's mean is taken of."""
    best: bool = False
    """The best fused arm of its task."""


@dataclass(frozen=True)
class Table:
    """`rows[arm]` has one cell for each of `columns`."""

    title: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[Cell]]


@dataclass
class Notes:
    """Footnotes: equal texts share a number."""

    texts: list[str] = field(default_factory=list)

    def mark(self, text: str) -> str:
        """The superscript number that stands for `text`."""
        if text not in self.texts:
            self.texts.append(text)
        return superscript(self.texts.index(text) + 1)


def superscript(number: int) -> str:
    """The number of a note, as it stands beside a number of the table."""
    return str(number).translate(DIGITS)


@dataclass(frozen=True)
class Report:
    scores: Table
    """Metric ± standard error."""
    gaps: Table
    """Gap closed with its interval."""
    weights: Table
    """Mean ± standard deviation of the weight that each fused arm gave its experts."""
    notes: Sequence[str]
    """The text of note 1, 2, ..."""
    remarks: Sequence[str]
    """What else a reader must know: absent arms, answers that could not be judged, prompts that were cut."""


def report(record: Record) -> Report:
    """The tables of a record. An arm that no task could have is a remark, not a row."""
    notes = Notes()
    tasks = record["tasks"]
    scores = _table("Score ± standard error", tasks, "value", _score, notes, _heading)
    gaps = _table("Gap closed, % [95 % interval]", tasks, "gap_closed", _gap, notes)
    weights = _table("Weight of each expert: mean ± sd over all tokens", tasks, "weights", _weight, notes)
    fused = {
        arm: [replace(cell, best=False) for cell in row]
        for arm, row in weights.rows.items()
        if any(entry["rule"] for entry in _entries(tasks, arm))
    }
    return Report(scores, gaps, replace(weights, rows=fused), notes.texts, list(_remarks(tasks)))


def _table(
    title: str,
    tasks: Tasks,
    key: str,
    show: Callable[[Record, Record, Notes], Cell],
    notes: Notes,
    heading: Callable[[Record, str], str] = lambda _, name: name,
) -> Table:
    """A table of the field `key` of every task and arm, each shown by `show(task, entry, notes)`."""
    arms = list(dict.fromkeys(arm for task in tasks.values() for arm in task["arms"]))
    rows = {arm: [_cell(task, arm, key, show, notes) for task in tasks.values()] for arm in arms}
    return _with_mean(Table(title, [heading(task, name) for name, task in tasks.items()], rows), notes)


def _cell(task: Record, arm: str, key: str, show: Callable[[Record, Record, Notes], Cell], notes: Notes) -> Cell:
    if arm not in task["arms"]:
        return Cell("·" + notes.mark(task["missing"].get(arm, "not an arm of this task")))
    entry = task["arms"][arm]
    if entry[key] is None:
        return Cell(_undefined(entry, key, notes))
    return replace(show(task, entry, notes), best=arm in _best_fused(task))


def _with_mean(table: Table, notes: Notes) -> Table:
    """`table` with a column of means over the tasks, where it is one of numbers."""
    if len(table.columns) < 2 or all(cell.number is None for row in table.rows.values() for cell in row):
        return table
    rows = {arm: [*row, _mean(row, notes)] for arm, row in table.rows.items()}
    return Table(table.title, [*table.columns, "mean"], rows)


def _mean(row: Sequence[Cell], notes: Notes) -> Cell:
    numbers = [cell.number for cell in row if cell.number is not None]
    if not numbers:
        return Cell("–")
    mark = notes.mark(f"mean of {len(numbers)} of {len(row)} tasks") if len(numbers) < len(row) else ""
    return Cell(f"{sum(numbers) / len(numbers):.1f}{mark}")


def _heading(task: Record, name: str) -> str:
    unit = "" if task["metric"] in UNSCALED else " %"
    direction = "" if task["higher_is_better"] else ", lower is better"
    return f"{name}\n{task['metric']}{unit}{direction}\nn = {task['n']}"


def _score(task: Record, entry: Record, notes: Notes) -> Cell:
    percent = task["metric"] not in UNSCALED
    scale, digits = (100.0, 1) if percent else (1.0, 3)
    error = "" if entry["stderr"] is None else f" ± {entry['stderr'] * scale:.{digits}f}"
    value = entry["value"] * scale
    # A perplexity or an error rate has no place in a mean of accuracies.
    return Cell(f"{value:z.{digits}f}{error}", value if percent and task["higher_is_better"] else None)


def _gap(task: Record, entry: Record, notes: Notes) -> Cell:
    percent = entry["gap_closed"] * 100
    if entry["gap_closed_ci"] is None:
        return Cell(f"{percent:.1f} {_undefined(entry, 'gap_closed_ci', notes)}", percent)
    low, high = (bound * 100 for bound in entry["gap_closed_ci"])
    return Cell(f"{percent:z.1f} [{low:z.1f}, {high:z.1f}]", percent)


def _weight(task: Record, entry: Record, notes: Notes) -> Cell:
    weights = {name: f"{w['mean']:.2f} ± {w['sd']:.2f}" for name, w in entry["weights"].items()}
    return Cell(", ".join(weights.values() if len(weights) == 1 else (f"{name} {w}" for name, w in weights.items())))


def _undefined(entry: Record, key: str, notes: Notes) -> str:
    return "–" + notes.mark(entry["undefined"].get(key, "undefined"))


def _best_fused(task: Record) -> set[str]:
    """The arms with the best value among those with a rule; several if they are equal."""
    fused = {name: arm["value"] for name, arm in task["arms"].items() if arm["rule"] and arm["value"] is not None}
    if not fused:
        return set()
    best = max(fused.values()) if task["higher_is_better"] else min(fused.values())
    return {name for name, value in fused.items() if value == best}


def _entries(tasks: Tasks, arm: str) -> list[Record]:
    return [task["arms"][arm] for task in tasks.values() if arm in task["arms"]]


def _remarks(tasks: Tasks) -> Iterator[str]:
    absent = {arm: why for task in tasks.values() for arm, why in task["missing"].items() if not _entries(tasks, arm)}
    for arm, why in absent.items():
        yield f"No arm {arm}: {why}."
    for name, task in tasks.items():
        failed = {arm: entry.get("failed_items", {}) for arm, entry in task["arms"].items()}
        for arm, items in failed.items():
            if items:
                error = next(iter(items.values()))
                yield f"{name}: {arm} failed at {len(items)} items, which are left out of its score: {error}."
        invalid = {arm: entry["n_invalid"] - len(failed[arm]) for arm, entry in task["arms"].items()}
        if invalid := {arm: count for arm, count in invalid.items() if count}:
            counts = ", ".join(f"{arm} {count}" for arm, count in invalid.items())
            yield f"{name}: answers that could not be judged and are left out of the score: {counts}."
        if task["n_truncated"]:
            yield f"{name}: {task['n_truncated']} prompts were cut to the smallest window."
