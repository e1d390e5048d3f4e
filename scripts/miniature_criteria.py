"""The criteria that the miniature's world must meet (docs/miniature.md), as a Markdown table with a column per run.

    proxytune run task=miniature_unseen arms=miniature_unseen output=outputs/seed0
    python scripts/miniature_criteria.py outputs/seed0 [outputs/seed1 ...]

Two arms differ where the mean of their paired differences exceeds two of its standard errors.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from proxytune.record import read_record
from proxytune.reporting.frames import frames
from proxytune.statistics import Values, paired_difference

STATIC = ("static_0_5", "proxy", "static_1_5")
ERRORS = 2
"""Standard errors by which two arms must differ."""


@dataclass(frozen=True)
class Run:
    """`scores[task][arm]` in percent, item by item."""

    seed: int
    scores: dict[str, dict[str, Values]]

    @property
    def tuned_on(self) -> dict[str, dict[str, Values]]:
        """The tasks with an expert of their own."""
        return {task: arms for task, arms in self.scores.items() if "expert" in arms}

    @property
    def unseen(self) -> dict[str, dict[str, Values]]:
        return {task: arms for task, arms in self.scores.items() if "expert" not in arms}


def read_run(folder: Path) -> Run:
    """Raises UserError for a folder that holds no finished run."""
    config = read_record(folder).provenance.config or {}
    scores: dict[str, dict[str, Values]] = {}
    for (task, arm), rows in frames(folder).items.groupby(["task", "arm"], sort=False):
        scores.setdefault(task, {})[arm] = 100 * rows.sort_values("item")["score"].to_numpy()
    return Run(config["miniature"]["seed"], scores)


def differ(a: Values, b: Values) -> bool:
    """Whether a and b differ by more than `ERRORS` standard errors; equal arrays do not."""
    return above(a, b) or above(b, a)


def above(a: Values, b: Values) -> bool:
    """Whether a is above b by more than `ERRORS` standard errors."""
    gap = paired_difference(a, b)
    return gap.value > 0 and (gap.stderr is None or gap.value > ERRORS * gap.stderr)


def lowest(run: Run, least: float, of: Callable[[dict[str, Values]], float]) -> str:
    values = [of(arms) for arms in run.tuned_on.values()]
    return _verdict(min(values) >= least, f"{min(values):.0f} to {max(values):.0f}")


def count(run: Run, least: int, holds: Callable[[dict[str, Values]], bool]) -> str:
    tasks = [_short(task) for task, arms in run.tuned_on.items() if holds(arms)]
    return _verdict(len(tasks) >= least, f"{len(tasks)}: {', '.join(tasks)}" if tasks else "0")


def no_extremes(run: Run) -> str:
    extremes: dict[str, list[str]] = {}
    for task, arms in run.tuned_on.items():
        for arm, values in arms.items():
            if values.mean() in (0, 100):
                extremes.setdefault(f"{_short(task)} {values.mean():.0f}", []).append(arm)
    return _verdict(not extremes, "; ".join(f"{where}: {', '.join(arms)}" for where, arms in extremes.items()))


def harm(run: Run) -> str:
    if not run.unseen:
        return "no such task in this run"
    [arms] = run.unseen.values()
    harmed = [f"{arm} {arms[arm].mean():.0f}" for arm in arms if above(arms["base"], arms[arm])]
    return _verdict(bool(harmed), f"base {arms['base'].mean():.0f}; {', '.join(harmed)}")


def _verdict(met: bool, detail: str) -> str:
    return ("met" if met else "**not met**") + (f" ({detail})" if detail else "")


def _short(task: str) -> str:
    return task.removeprefix("miniature_")


CRITERIA: dict[str, Callable[[Run], str]] = {
    "base ≥ 5 points on each task": lambda run: lowest(run, 5, lambda arms: arms["base"].mean()),
    "tuned − base ≥ 30 on each task": lambda run: lowest(
        run, 30, lambda arms: arms["tuned"].mean() - arms["base"].mean()
    ),
    "expert below proxy by > 2 SE on ≥ 4 tasks": lambda run: count(
        run, 4, lambda arms: above(arms["proxy"], arms["expert"])
    ),
    "tuned above expert by ≥ 10 on each task": lambda run: lowest(
        run, 10, lambda arms: arms["tuned"].mean() - arms["expert"].mean()
    ),
    "α = 0.5, 1, 1.5 all differ by > 2 SE on ≥ 3 tasks": lambda run: count(
        run, 3, lambda arms: all(differ(arms[a], arms[b]) for a, b in itertools.combinations(STATIC, 2))
    ),
    "dynamic differs from α = 1 by > 2 SE on ≥ 2 tasks": lambda run: count(
        run, 2, lambda arms: differ(arms["dynamic"], arms["proxy"])
    ),
    "no arm at 0 or 100 on these tasks": no_extremes,
    "a task that no model was tuned on shows harm by > 2 SE": harm,
}


def table(runs: Iterable[Run]) -> str:
    runs = list(runs)
    lines = [["criterion", *(f"seed {run.seed}" for run in runs)], ["---"] * (len(runs) + 1)]
    lines += [[title, *(check(run) for run in runs)] for title, check in CRITERIA.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    print(table(map(read_run, parser.parse_args().runs)))


if __name__ == "__main__":
    main()
