"""What a sweep of α costs, as arms of one run and as jobs, against one run of one α: on the built-in miniature.

    python scripts/benchmark_sweep.py [--alphas 21] [--limit N] [--task miniature_gsm] [--rounds 1] [--json FILE]

All runs are done in this one process, each with a store of its own, so that nothing is read that another computed.
Times are processor seconds of the whole command after its imports. "jobs / (alphas x one without loading)" is what the
jobs of a sweep add to their work. Arms and jobs must end with the same scores: that is checked.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from proxytune import models
from proxytune.cli import main as proxytune
from proxytune.cli.run import _kept_models
from proxytune.record import Record, read_record

KEY = "arms.proxy.rule.weights"


def alphas(count: int) -> list[str]:
    """0.1, 0.2, and so on."""
    return [f"{tenths / 10}" for tenths in range(1, count + 1)]


class Loading:
    """Processor seconds that loading models takes."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._load = models.load
        models.load = self

    def __call__(self, *arguments: Any) -> Any:
        began = time.process_time()
        try:
            return self._load(*arguments)
        finally:
            self.seconds += time.process_time() - began


class Taken(NamedTuple):
    """Processor seconds of a command, those of them that loaded models, and the records of its run or jobs."""

    seconds: float
    loading: float
    records: list[Record]


def timed(loading: Loading, folder: Path, given: list[str], *arguments: str) -> Taken:
    _kept_models.cache_clear()
    command = ["run", *arguments, *given, "only=[proxy]", f"output={folder}", f"store={folder}.sqlite"]
    began, loading.seconds = time.process_time(), 0.0
    if proxytune(command) != 0:
        raise SystemExit(f"proxytune {' '.join(command)} failed")
    taken = time.process_time() - began
    paths = sorted(folder.rglob("results.json"), key=lambda path: (len(str(path)), path))
    return Taken(taken, loading.seconds, [read_record(path) for path in paths])


def scores(records: list[Record]) -> list[tuple[str, float | None]]:
    """Of all arms and runs: (task, score)."""
    tasks = [(name, task) for record in records for name, task in record.tasks.items()]
    return [(name, arm.value) for name, task in tasks for arm in task.arms.values()]


def measured(loading: Loading, folder: Path, given: list[str], values: list[str]) -> dict[str, Any]:
    """Times of the three, and whether arms and jobs have the same scores."""
    one = timed(loading, folder / "one", given, f"{KEY}={values[-1]}")
    arms = timed(loading, folder / "arms", given, f"{KEY}={values[0]}:{values[-1]}:0.1")
    jobs = timed(loading, folder / "jobs", given, "-m", f"{KEY}={','.join(values)}")
    return {
        "seconds": {"one": one.seconds, "arms": arms.seconds, "jobs": jobs.seconds},
        "of which loading": {"one": one.loading, "arms": arms.loading, "jobs": jobs.loading},
        "arms / one": arms.seconds / one.seconds,
        "jobs / one": jobs.seconds / one.seconds,
        "jobs / (alphas x one without loading)": jobs.seconds / (len(values) * (one.seconds - one.loading)),
        "equal": scores(arms.records) == scores(jobs.records),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alphas", type=int, default=21)
    parser.add_argument("--limit", default="null")
    parser.add_argument("--task", default="miniature_gsm")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    given = [f"task.names=[{asked.task}]", f"limit={asked.limit}", "report=false"]
    rounds, loading = [], Loading()
    with tempfile.TemporaryDirectory() as temporary:
        timed(loading, Path(temporary) / "warm", given, f"{KEY}=1.0")  # imports whatever is imported late
        for number in range(asked.rounds):
            rounds.append(measured(loading, Path(temporary) / str(number), given, alphas(asked.alphas)))
    for name in rounds[0]:
        values = [one[name] for one in rounds]
        print(f"{name}: {values if isinstance(values[0], dict | bool) else round(statistics.median(values), 2)}")
    if asked.json is not None:
        asked.json.write_text(json.dumps(rounds, indent=2) + "\n")
    return 0 if all(one["equal"] for one in rounds) else 1


if __name__ == "__main__":
    sys.exit(main())
