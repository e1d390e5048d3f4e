"""Kills runs at random moments, starts them again, and compares what they leave with an uninterrupted run: to the byte.

    python scripts/kill_test.py [--trials 100] [--seed 0]

Each trial is `proxytune run` over a tiny family, killed with SIGKILL in a phase that is drawn first, so that short
phases are hit as often as long ones: at a random entry into it, after a random share of its usual length. Then the same
command is given again. Every answer that the store held when the process died must come from there, and `results.json`
(timings aside), the items, `results.csv` and `table.md` must be those of the uninterrupted run.

Processes are forked from one that has imported everything, which is what makes a hundred trials take minutes.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from tiny import save_family
from tqdm import tqdm

from proxytune import reporting
from proxytune.cli import main as proxytune
from proxytune.engines.hf import decode as generate
from proxytune.engines.hf import engine
from proxytune.experiment import runner
from proxytune.experiment.answers import shared, store
from proxytune.record import read_record

torch.set_num_threads(1)
FORK = multiprocessing.get_context("fork")
EXPERTS = ("trivia", "tqa")
ITEMS, BLOCK = 6, 2
PHASES = ("other", "load", "prefill", "decode", "scoring", "storing", "reporting")
TOO_LATE = "after the end"


class Watch:
    """The phase that a process is in, and how often it has entered each, where another process can see it."""

    def __init__(self) -> None:
        self.now = FORK.RawValue("i", 0)
        self.entries = FORK.RawArray("i", len(PHASES))
        self.seconds = FORK.RawArray("d", len(PHASES))

    def reset(self) -> None:
        self.now.value = 0
        self.entries[:] = [0] * len(PHASES)
        self.seconds[:] = [0.0] * len(PHASES)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        number, before, start = PHASES.index(name), self.now.value, time.perf_counter()
        self.now.value = number
        self.entries[number] += 1
        try:
            yield
        finally:
            self.seconds[number] += time.perf_counter() - start
            self.now.value = before

    def mark(self, owner: Any, function: str, phase: str) -> None:
        """From now on `owner.function` runs in `phase`."""
        original: Callable[..., Any] = getattr(owner, function)

        @functools.wraps(original)
        def marked(*arguments: Any, **options: Any) -> Any:
            with self.phase(phase):
                return original(*arguments, **options)

        setattr(owner, function, marked)

    def mark_steps(self, owner: Any, function: str, phase: str) -> None:
        """The same for a generator function."""
        original = getattr(owner, function)

        def marked(*arguments: Any) -> Iterator[Any]:
            steps = original(*arguments)
            while True:
                with self.phase(phase):
                    try:
                        step = next(steps)
                    except StopIteration:
                        return
                yield step

        setattr(owner, function, marked)


def watched() -> Watch:
    watch = Watch()
    watch.mark(runner, "load", "load")
    watch.mark(generate.Decoding, "admit", "prefill")
    watch.mark(generate.Decoding, "grow", "decode")
    watch.mark(generate.Decoding, "read", "decode")
    watch.mark_steps(engine, "score_some", "scoring")
    watch.mark(store.AnswerStore, "put", "storing")
    for owner, function in (
        (runner, "task_record"),
        (runner, "write_jsonl"),
        (runner, "write_json"),
        (reporting, "write"),
        (reporting, "show"),
    ):
        watch.mark(owner, function, "reporting")
    return watch


class World:
    """A tiny family and two tasks on disk, and the command that runs them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.output, self.store = folder, folder / "output", folder / "answers.sqlite"
        paths = save_family(folder / "family", EXPERTS, EXPERTS)
        self._write("trivia", lambda i: {"question": f"where does the river {i} begin ?", "answer": "the sea"})
        self._write("tqa", lambda i: {"question": f"how many {i} ?", "choices": [" 12", " the sea"], "label": i % 2})
        members = [f"+models.experts.{name}.path={paths[f'expert:{name}']}" for name in EXPERTS]
        members += [f"+models.tuned.{name}.path={paths[f'tuned:{name}']}" for name in EXPERTS]
        self.command = [
            "run",
            "models=local",
            f"models.base.path={paths['base']}",
            f"models.antiexpert.path={paths['antiexpert']}",
            *members,
            "task=miniature",
            "task.names=[miniature_trivia,miniature_tqa]",
            f"task.data_dir={folder / 'data'}",
            "only=[base,tuned,proxy,dynamic]",
            f"output={self.output}",
            f"store={self.store}",
        ]

    def _write(self, task: str, row: Callable[[int], dict[str, Any]]) -> None:
        path = self.folder / "data" / task / "test.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(row(i)) + "\n" for i in range(ITEMS)))

    def clear(self) -> None:
        shutil.rmtree(self.output, ignore_errors=True)
        for path in self.folder.glob("answers.sqlite*"):
            path.unlink()

    def start(self, before: Callable[[], object] = lambda: None) -> Any:
        """The run in a process of its own, which calls `before` first; what it says is in the file `log`."""
        process = FORK.Process(target=self._run, args=(before,))
        process.start()
        return process

    def _run(self, before: Callable[[], object]) -> None:
        log = os.open(self.folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        tqdm.set_lock(threading.RLock())  # the one inherited is shared: a killed process may have died with it
        try:
            before()
            status = proxytune(self.command)
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        os._exit(status)

    def finish(self) -> None:
        process = self.start()
        process.join()
        if process.exitcode != 0:
            raise SystemExit(f"the run failed:\n{(self.folder / 'log').read_text()}")

    def stored(self) -> int:
        if not self.store.exists():
            return 0
        with sqlite3.connect(self.store) as db:
            if not db.execute("SELECT name FROM sqlite_master WHERE name = 'answers'").fetchall():
                return 0
            return db.execute("SELECT COUNT(*) FROM answers").fetchone()[0]

    def answers(self) -> Counter[str]:
        """How many answers the last run computed and how many it had from the store."""
        answers = read_record(self.output).provenance.timings.answers
        return sum((Counter(task.model_dump()) for task in answers.values()), Counter())

    def results(self) -> dict[str, bytes]:
        record = json.loads((self.output / "results.json").read_text())
        del record["provenance"]["timings"]
        paths = [*sorted(self.output.glob("items/*.jsonl")), self.output / "results.csv", self.output / "table.md"]
        return {"results.json": json.dumps(record).encode()} | {path.name: path.read_bytes() for path in paths}


def kill_at(process: Any, watch: Watch, phase: str, entry: int, delay: float) -> str | None:
    """Kills the process `delay` seconds after its given entry into `phase`; the phase it died in, None if too late."""
    number = PHASES.index(phase)
    while process.is_alive() and watch.entries[number] < entry:
        time.sleep(0.0001)
    time.sleep(delay)
    process.kill()
    process.join()
    return PHASES[watch.now.value] if process.exitcode == -signal.SIGKILL else None


class Report(NamedTuple):
    """What came of the kills."""

    total: int
    """Answers of a whole run."""
    died: Counter[str]
    """In which phase how many runs died."""
    kept: int
    """Answers that were in the store when their run died, of all trials."""
    recomputed: int
    """Those of them that the run computed again after its restart."""
    wrong: list[str]
    """Trials with anything recomputed, missing or different, each in a line."""


def run(trials: int, seed: int, folder: Path) -> Report:
    """Kills and restarts `trials` runs in `folder`. To be called in a process of its own: it marks our functions."""
    world, watch, rng = World(folder), watched(), random.Random(seed)
    shared.BLOCK = BLOCK
    proxytune(world.command)  # imports whatever is imported late
    world.clear()
    watch.reset()
    began = time.perf_counter()
    world.finish()
    whole, total, length = world.results(), world.answers()["computed"], time.perf_counter() - began
    assert world.stored() == total
    entries, seconds = list(watch.entries), list(watch.seconds)
    entries[0], seconds[0] = 0, length - sum(seconds)  # "other": any moment of the run
    shares = ", ".join(f"{name} {s:.3f} s in {n}" for name, s, n in zip(PHASES, seconds, entries, strict=True))
    print(f"uninterrupted: {total} answers, {length:.2f} s ({shares})", flush=True)

    report = Report(total, Counter(), 0, 0, [])
    for trial in range(trials):
        world.clear()
        watch.reset()
        phase = PHASES[trial % len(PHASES)]
        number = PHASES.index(phase)
        entry = rng.randint(1, entries[number]) if entries[number] else 0
        delay = rng.uniform(0, seconds[number] / max(entries[number], 1))
        report.died[kill_at(world.start(), watch, phase, entry, delay) or TOO_LATE] += 1
        kept = world.stored()
        world.finish()
        answers, results = world.answers(), world.results()
        again = kept - answers["from_store"]
        report = report._replace(kept=report.kept + kept, recomputed=report.recomputed + again)
        differing = sorted(name for name in whole.keys() | results.keys() if whole.get(name) != results.get(name))
        if again or answers["computed"] != total - kept or differing:
            report.wrong.append(f"trial {trial}: {kept} kept, {dict(answers)}, differing: {differing}")
        if sys.stderr.isatty():
            print(f"\r{trial + 1} of {trials}", end="", file=sys.stderr)
    return report


def show(report: Report) -> None:
    trials = report.died.total()
    deaths = ", ".join(f"{name} {report.died[name]}" for name in (*PHASES, TOO_LATE) if report.died[name])
    print(*report.wrong, sep="\n", end="\n" if report.wrong else "")
    print(f"{trials} kills ({deaths})")
    print(f"finished answers at death: {report.kept} of {trials * report.total}; recomputed: {report.recomputed}")
    print(f"trials whose results differ from the uninterrupted run's: {len(report.wrong)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        outcome = run(given.trials, given.seed, Path(temporary))
    show(outcome)
    sys.exit(1 if outcome.wrong else 0)
