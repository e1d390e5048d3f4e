"""Scoring outputs that were generated elsewhere, by models that judge them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxytune.atomic import write_jsonl
from proxytune.errors import UserError
from proxytune.tasks.columns import Columns
from proxytune.tasks.data import Row, read_jsonl
from proxytune.tasks.judges import NAMES, Judges, Pair
from proxytune.tasks.registry import find
from proxytune.tasks.verdicts import VERDICTS


@dataclass(frozen=True)
class Judging:
    """How `score_outputs` has outputs judged, by the one judge that `judges` has."""

    judges: Judges
    reference: Path | None = None
    """outputs of the reference model, by instruction (AlpacaFarm)"""
    verdicts: Path | None = None
    """a JSON-lines file to write, one verdict a line"""


def judge_outputs(name: str, path: Path, judging: Judging) -> dict[str, Any]:
    """{task, n, figure: value, ...} of a file of outputs, from verdicts that the judge gives.

    Raises UserError: a task that the judge is not for, a file that cannot be read, and what the judge raises.
    """
    kind = next(kind for kind in _KINDS if getattr(judging.judges, kind) is not None)
    wanted, judge = _KINDS[kind]
    if name != wanted:
        raise UserError(f"{NAMES[kind]} has no effect on task {name!r}: it is for {wanted}")
    extras = find(name).extras
    columns = Columns(extras.outputs, extras.published)
    outputs = _rows(path, lambda row, where: row | columns.of(row, where))
    rows, counts = judge(outputs, judging)
    if judging.verdicts is not None:
        write_jsonl(judging.verdicts, rows)
    return {"task": name, "n": len(rows), **counts, **VERDICTS[name].figures(rows)}


def _rows(path: Path, check: Callable[[Row, str], Row]) -> list[Row]:
    """One JSON object a line, or AlpacaEval's JSON list of them."""
    if path.suffix != ".json":
        return read_jsonl(path, check).rows
    try:
        listed = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} as a JSON list: {error}") from error
    if not isinstance(listed, list) or not listed or not all(isinstance(row, dict) for row in listed):
        raise UserError(f"{path} is not a list of objects")
    return [check(row, f"{path}, entry {i}") for i, row in enumerate(listed, start=1)]


JudgedRows = tuple[list[Row], Mapping[str, int]]
"""Rows with a verdict each, and what it took."""


def _toxic(outputs: Sequence[Row], judging: Judging) -> JudgedRows:
    assert judging.judges.classifier is not None
    flags = judging.judges.classifier.flags([row["output"] for row in outputs])
    return [row | {"is_toxic": flag} for row, flag in zip(outputs, flags, strict=True)], {}


def _true(outputs: Sequence[Row], judging: Judging) -> JudgedRows:
    assert judging.judges.truth is not None
    found = judging.judges.truth.verdicts([(row["question"], row["output"]) for row in outputs])
    return [row | verdict for row, verdict in zip(outputs, found, strict=True)], {}


def _preferred(outputs: Sequence[Row], judging: Judging) -> JudgedRows:
    """Pairs without a readable reply are left out and counted."""
    judge = judging.judges.pairs
    assert judge is not None
    pairs = _pairs(outputs, judging.reference)
    found = judge.preferences(pairs)
    rows = [pair._asdict() | {"preference": one} for pair, one in zip(pairs, found, strict=True) if one is not None]
    if not rows:
        raise UserError(f"judge: no reply of {judge.endpoint.model} is 0, 1 or 2: choose another model")
    return rows, {"without_verdict": len(pairs) - len(rows), **judge.spent()}


def _pairs(outputs: Sequence[Row], reference: Path | None) -> list[Pair]:
    if reference is None:
        raise UserError("reference=... is missing: a file of the reference model's outputs, by instruction")
    columns = Columns({"instruction": "text", "output": "text"})
    of = {row["instruction"]: row for row in _rows(reference, lambda row, where: row | columns.of(row, where))}
    for row in outputs:
        if row["instruction"] not in of:
            raise UserError(f"{reference} has no output for the instruction {row['instruction'][:60]!r}")
    return [_pair(row, of[row["instruction"]]) for row in outputs]


def _pair(output: Row, reference: Row) -> Pair:
    names = (str(row.get("generator") or other) for row, other in ((reference, "reference"), (output, "model")))
    return Pair(output["instruction"], reference["output"], output["output"], *names)


_KINDS: dict[str, tuple[str, Callable[[Sequence[Row], Judging], JudgedRows]]] = {
    "classifier": ("toxigen_liu2024", _toxic),
    "truth": ("truthfulqa_open_liu2024", _true),
    "pairs": ("alpacafarm_liu2024", _preferred),
}
"""Judge (a field of `Judges`) -> the task whose outputs it judges, and how."""
