"""The columns of a report, each declared once: how it is shown in a table, and what it is in `results.csv`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from proxytune.record import ArmRecord, TaskRecord

NO_VARIATION = "no variation between items: the error is Wilson's or, for a gap, Agresti and Min's"
NORMAL_95 = 1.96
"""Standard errors in half a 95 % interval, where the record has no interval of its own."""
_DIGITS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Cell:
    text: str
    number: float | None = None
    """What enters the row's mean; None: nothing."""
    best: bool = False
    """The best fused arm of its task."""


@dataclass
class Notes:
    """Footnotes: equal texts share a number."""

    texts: list[str] = field(default_factory=list)

    def mark(self, text: str) -> str:
        """The superscript number that stands for `text`."""
        if text not in self.texts:
            self.texts.append(text)
        return superscript(self.texts.index(text) + 1)

    def undefined(self, arm: ArmRecord, field: str) -> str:
        """A dash, with a mark for why `field` is undefined."""
        return "–" + self.mark(arm.undefined.get(field, "undefined"))


def superscript(number: int) -> str:
    return str(number).translate(_DIGITS)


@dataclass(frozen=True)
class Column:
    """One quantity of every arm on every task: a table of arms and tasks, and columns of `results.csv`."""

    csv: Mapping[str, Callable[[ArmRecord], object]]
    """Column of `results.csv` -> its value; None is an empty field."""
    title: str | None = None
    """Of the table; None: in `results.csv` only."""
    field: str = ""
    """The field of the record that the table shows."""
    cell: Callable[[TaskRecord, ArmRecord, Notes], Cell | None] | None = None
    """None where the field is undefined."""
    fused_only: bool = False
    """The table has only arms with a rule, and stands in `table.md` but not in the terminal."""


def scale_and_digits(task: TaskRecord) -> tuple[float, int]:
    """By what a score is multiplied to be shown, and its digits: percent for fractions."""
    return (100.0, 1) if task.is_fraction else (1.0, 3)


def score_text(task: TaskRecord, value: float | None, stderr: float | None = None, sign: str = "z") -> str:
    """A score or a difference of scores with its error; `sign` is that of Python's formats. "–" without a value."""
    if value is None:
        return "–"
    scale, digits = scale_and_digits(task)
    error = "" if stderr is None else f" ± {stderr * scale:.{digits}f}"
    return f"{value * scale:{sign}.{digits}f}{error}"


def _score(task: TaskRecord, arm: ArmRecord, notes: Notes) -> Cell | None:
    if arm.value is None:
        return None
    mark = notes.mark(NO_VARIATION) if arm.stderr_method == "wilson" else ""
    # A perplexity or an error rate has no place in a mean of accuracies.
    number = arm.value * 100 if task.is_fraction and task.higher_is_better else None
    return Cell(score_text(task, arm.value, arm.stderr) + mark, number)


def _gap(task: TaskRecord, arm: ArmRecord, notes: Notes) -> Cell | None:
    if arm.gap_closed is None:
        return None
    percent = arm.gap_closed * 100
    if arm.gap_closed_ci is None:
        return Cell(f"{percent:.1f} {notes.undefined(arm, 'gap_closed_ci')}", percent)
    low, high = (bound * 100 for bound in arm.gap_closed_ci)
    mark = notes.mark(NO_VARIATION) if arm.gap_closed_ci_method == "agresti-min" else ""
    return Cell(f"{percent:z.1f} [{low:z.1f}, {high:z.1f}]{mark}", percent)


def _weights(task: TaskRecord, arm: ArmRecord, notes: Notes) -> Cell:
    shown = {
        expert: notes.undefined(arm, "weights") if one.mean is None else f"{one.mean:.2f} ± {one.sd or 0.0:.2f}"
        for expert, one in arm.weights.items()
    }
    return Cell(", ".join(shown.values() if len(shown) == 1 else (f"{name} {w}" for name, w in shown.items())))


def _bound(field: str, index: int) -> Callable[[ArmRecord], float | None]:
    return lambda arm: (getattr(arm, field) or (None, None))[index]


COLUMNS = (
    Column(
        {
            "value": lambda arm: arm.value,
            "stderr": lambda arm: arm.stderr,
            "stderr_method": lambda arm: arm.stderr_method,
            "value_low": _bound("interval", 0),
            "value_high": _bound("interval", 1),
        },
        "Score ± standard error",
        "value",
        _score,
    ),
    Column({"n": lambda arm: arm.n, "n_invalid": lambda arm: arm.n_invalid}),
    Column(
        {
            "gap_closed": lambda arm: arm.gap_closed,
            "gap_closed_low": _bound("gap_closed_ci", 0),
            "gap_closed_high": _bound("gap_closed_ci", 1),
            "gap_closed_method": lambda arm: arm.gap_closed_ci_method,
        },
        "Gap closed, % [95 % interval]",
        "gap_closed",
        _gap,
    ),
    Column({"relative_performance": lambda arm: arm.relative_performance}),
    Column({}, "Weight of each expert: mean ± sd over all tokens", "weights", _weights, fused_only=True),
    Column({"undefined": lambda arm: "; ".join(f"{field}: {why}" for field, why in arm.undefined.items()) or None}),
)
