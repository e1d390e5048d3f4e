"""What every format needs of a run: its arms, and what each answered at each item, as text."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from proxytune.errors import UserError
from proxytune.record import FILE, ArmRecord, TaskRecord
from proxytune.reporting.report.source import Run, find_runs


class Result(NamedTuple):
    """One arm on one task of a run."""

    run: Run
    task_name: str
    task: TaskRecord
    arm_name: str
    arm: ArmRecord

    @property
    def items(self) -> Iterator[Item]:
        for row in self.run.items[self.task_name]:
            yield _item(row, row["arms"][self.arm_name], self.task.metric)

    @property
    def digest(self) -> bytes:
        """The same whenever this is exported again, and different from that of any other."""
        name = [str(self.run.folder.resolve()), self.task_name, self.arm_name, finished_at(self.run).isoformat()]
        return hashlib.sha256(json.dumps(name).encode()).digest()


class Item(NamedTuple):
    """What an arm answered at one item."""

    id: Any
    prompt: str
    choices: list[str] | None
    targets: list[str]
    """The right answers; of choices, their texts."""
    outputs: list[str]
    """What was generated, or the likeliest choice; empty where the arm failed."""
    answer: str
    """What was compared with the targets."""
    score: float | None
    """None where the metric could not judge it, or the arm failed."""
    error: str | None
    log_probabilities: list[float | None] | None
    """Of the choices."""
    alpha: dict[str, float]
    """Expert -> its mean weight over the tokens of the answer."""


def runs_of(paths: Sequence[str]) -> list[Run]:
    """The runs of folders and sweeps; raises UserError where scores or items are missing."""
    runs = find_runs(paths)
    for run in runs:
        if not (run.folder / FILE).is_file() or run.items.keys() < run.record.tasks.keys():
            raise UserError(f"{run.folder} cannot be exported: {run.missing[0]}")
    return runs


def results(run: Run) -> Iterator[Result]:
    """Each arm on each task."""
    for name, task in run.record.tasks.items():
        for arm in task.arms:
            yield Result(run, name, task, arm, task.arms[arm])


def finished_at(run: Run) -> datetime:
    """When the run's results were written, in UTC, to the second."""
    return datetime.fromtimestamp(int((run.folder / FILE).stat().st_mtime), UTC)


def file_name(*parts: str) -> str:
    """A name for files on any system."""
    return "-".join("".join(c if c.isalnum() or c in "._=,[]" else "-" for c in part).strip(".") for part in parts)


def _item(row: Mapping[str, Any], said: Mapping[str, Any], metric: str) -> Item:
    choices, output = row.get("choices"), said.get("output")
    score = said.get(metric)
    scored = choices is not None and output is not None
    return Item(
        id=row["doc_id"],
        prompt=str(row["prompt"]),
        choices=choices,
        targets=_targets(row["target"], choices),
        outputs=_outputs(output, choices),
        answer=_outputs(output, choices)[0] if scored else _text(said.get("answer")),
        score=None if score is None or not math.isfinite(score) else float(score),
        error=said.get("error"),
        log_probabilities=output if scored else None,
        alpha=_alpha(said.get("weights") or {}),
    )


def _targets(target: Any, choices: Sequence[str] | None) -> list[str]:
    found = target if isinstance(target, list) else [target]
    if choices and all(isinstance(one, int) and 0 <= one < len(choices) for one in found):
        return [choices[one] for one in found]
    return [_text(one) for one in found]


def _outputs(output: Any, choices: Sequence[str] | None) -> list[str]:
    if output is None:
        return []
    if choices is None:
        return [_text(one) for one in (output if isinstance(output, list) else [output])]
    likely = [-math.inf if value is None else value for value in output]
    return [choices[likely.index(max(likely))]]


def _alpha(weights: Mapping[str, Sequence[Sequence[float | None]]]) -> dict[str, float]:
    """Experts that were given no weight at this item are left out."""
    known = {name: [one for answer in given for one in answer if one is not None] for name, given in weights.items()}
    return {name: sum(some) / len(some) for name, some in known.items() if some}


def _text(value: object) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
