"""Stops runs at random moments, starts them again, and compares what they leave with an uninterrupted run: to the byte.

    python scripts/kill_test.py [--what run|sweep|build] [--how kill|ctrl-c] [--trials 100] [--seed 0]

Each trial is a `proxytune run` over a tiny family, a sweep of two such runs, or a run that trains a miniature first.
It is stopped in a phase that is drawn first, so that short phases are hit as often as long ones: at a random entry into
it, after a random share of its usual length; with SIGKILL, or with one or two Ctrl-C. Then the same command is run
again. What was there when the process died must not be computed again: answers in the store, finished jobs of a sweep,
trained models. What Ctrl-C said of them must be true. `results.json` (timings aside), the items, `results.csv`,
`table.md`, a sweep's tables and the models must be those of the uninterrupted run.

Processes are forked from one that has imported everything, which is what makes a hundred trials take minutes.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from kill_worlds import PHASES, WORLDS, Watch, World, watched

from proxytune.experiment.answers import shared
from proxytune.record import FILE, read_record

BLOCK = 2
TOO_LATE = "after the end"
SAID = re.compile(r"(\S+): (\d+) of (\d+) answers are stored, (\d+) finished ones are lost")
MODELS = re.compile(r"stopped; (\d+) of the miniature's (\d+) models are complete and kept")


class Stop(NamedTuple):
    """When and how a trial is stopped."""

    phase: str
    entry: int
    delay: float
    """Seconds after the process has entered the phase so many times."""
    ctrl_c: int
    """How often Ctrl-C is pressed; 0: SIGKILL."""
    pause: float = 0.0
    """Seconds before the second."""

    def __call__(self, process: Any, watch: Watch) -> str | None:
        """Stops the process and waits for its end; the phase it died in, None if it had ended before."""
        number = PHASES.index(self.phase)
        while process.is_alive() and watch.entries[number] < self.entry:
            time.sleep(0.0001)
        time.sleep(self.delay)
        died_in = PHASES[watch.now.value]
        for press in range(self.ctrl_c):
            time.sleep(press * self.pause)
            if process.is_alive():
                os.kill(process.pid, signal.SIGINT)
        if not self.ctrl_c:
            process.kill()
        process.join()
        return None if process.exitcode == 0 else died_in


class Report(NamedTuple):
    """What came of the trials."""

    total: int
    """Parts of a whole run that are kept: answers, finished jobs, models."""
    died: Counter[str]
    """In which phase how many runs died."""
    kept: int
    """What was there when they died, of all trials."""
    recomputed: int
    """What of it was made again after the restart."""
    told: int
    """Trials whose last line said how many answers or models are kept."""
    wrong: list[str]
    """Trials with anything made again, missing, different or wrongly said, each in a line."""


def run(trials: int, seed: int, folder: Path, what: str = "run", how: str = "kill") -> Report:
    """Stops and restarts `trials` runs in `folder`. To be called in a process of its own: it marks our functions."""
    world, watch, rng = WORLDS[what](folder), watched(), random.Random(seed)
    shared.BLOCK = BLOCK
    world.warm_up()
    world.clear()
    watch.reset()
    began = time.perf_counter()
    world.finish()
    length = time.perf_counter() - began
    whole, total = world.results(), len(world.kept())
    entries, seconds = list(watch.entries), list(watch.seconds)
    entries[0], seconds[0] = 0, length - sum(seconds)  # "other": any moment of the run
    shares = ", ".join(f"{name} {s:.3f} s in {n}" for name, s, n in zip(PHASES, seconds, entries, strict=True))
    print(f"uninterrupted: {total} parts, {length:.2f} s ({shares})", flush=True)

    report = Report(total, Counter(), 0, 0, 0, [])
    for trial in range(trials):
        phase = world.phases[trial % len(world.phases)]
        number = PHASES.index(phase)
        entry = rng.randint(1, entries[number]) if entries[number] else 0
        delay = rng.uniform(0, seconds[number] / max(entries[number], 1))
        presses = rng.choice([1, 2]) if how == "ctrl-c" else 0
        report = _tried(report, trial, world, watch, Stop(phase, entry, delay, presses, rng.uniform(0, 0.05)), whole)
        if sys.stderr.isatty():
            print(f"\r{trial + 1} of {trials}", end="", file=sys.stderr)
    return report


def _tried(report: Report, trial: int, world: World, watch: Watch, stop: Stop, whole: dict[str, bytes]) -> Report:
    """One trial from nothing to the end, and what the report is with it."""
    world.clear()
    watch.reset()
    process = world.start()
    died_in = stop(process, watch)
    kept = world.kept()
    faults = _falsely_said(world, process.exitcode, kept) if stop.ctrl_c else []
    at_work = next((job for job in world.jobs() if not (job / FILE).exists()), None)
    log, said = world.log, SAID.search(world.log)
    world.finish()
    if said and at_work and _from_store(at_work, said[1]) != int(said[2]):
        faults.append(f"{said[0]}: {_from_store(at_work, said[1])} were")
    after, results = world.kept(), world.results()
    again = sum(after.get(part) != mark for part, mark in kept.items())
    differing = sorted(name for name in whole.keys() | results.keys() if whole.get(name) != results.get(name))
    if again or len(after) != report.total or differing:
        faults.append(f"{len(kept)} kept, {again} made again, {len(after)} in the end, differing: {differing}")
    report.died[died_in or TOO_LATE] += 1
    wrong = [*report.wrong, *([f"trial {trial}, {stop}: {'; '.join(faults)}"] if faults else [])]
    told = report.told + bool(said or MODELS.search(log))
    return report._replace(kept=report.kept + len(kept), recomputed=report.recomputed + again, told=told, wrong=wrong)


def _falsely_said(world: World, status: int, kept: dict[str, Any]) -> list[str]:
    """What is wrong with the end after a Ctrl-C: its exit status, its last line."""
    if status == 0:
        return []
    last, faults = world.log.splitlines()[-1], []
    if status != 130 or not last.startswith("proxytune: stopped"):
        faults.append(f"status {status}, {last!r}")
    models = sum(part.endswith("model.safetensors") for part in kept)
    if (said := MODELS.search(last)) and int(said[1]) != models:
        faults.append(f"{last!r}, but there are {models}")
    return faults


def _from_store(job: Path, task: str) -> int:
    """How many answers to the task its last run found in the store."""
    return read_record(job).provenance.timings.answers[task].from_store


def show(report: Report) -> None:
    trials = report.died.total()
    deaths = ", ".join(f"{name} {report.died[name]}" for name in (*PHASES, TOO_LATE) if report.died[name])
    print(*report.wrong, sep="\n", end="\n" if report.wrong else "")
    print(f"{trials} stops ({deaths})")
    there = f"{report.kept} of {trials * report.total}"
    print(f"parts there at death: {there}; made again: {report.recomputed}; last lines that count: {report.told}")
    print(f"trials with anything wrong or different from the uninterrupted run: {len(report.wrong)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=WORLDS, default="run")
    parser.add_argument("--how", choices=["kill", "ctrl-c"], default="kill")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        outcome = run(given.trials, given.seed, Path(temporary), given.what, given.how)
    show(outcome)
    sys.exit(1 if outcome.wrong else 0)
