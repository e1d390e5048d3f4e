"""What `kill_test.py` stops: a run, a sweep and a build of the miniature, in a folder, and which phase each is in."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import shutil
import sqlite3
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from tiny import save_family
from tqdm import tqdm

from proxytune import models, reporting
from proxytune.cli import main as proxytune
from proxytune.cli.run import _kept_models
from proxytune.engines.hf import decode as generate
from proxytune.engines.hf import score
from proxytune.experiment import runner
from proxytune.experiment.answers import store
from proxytune.miniature import schedule

torch.set_num_threads(1)
FORK = multiprocessing.get_context("fork")
EXPERTS = ("trivia", "tqa")
ITEMS = 6
RUNNING = ("other", "load", "prefill", "decode", "scoring", "storing", "reporting")
PHASES = (*RUNNING, "training")


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
    watch.mark(schedule, "train", "training")
    watch.mark(models, "load", "load")
    watch.mark(generate.Decoding, "admit", "prefill")
    watch.mark(generate.Decoding, "grow", "decode")
    watch.mark(generate.Decoding, "read", "decode")
    watch.mark_steps(score, "score_some", "scoring")
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
    """A folder, and a command that does all its work in it."""

    phases = RUNNING
    """Those in which it is stopped."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.output, self.store = folder, folder / "output", folder / "answers.sqlite"
        self.command = [*self.begin(), f"output={self.output}", f"store={self.store}"]

    def begin(self) -> list[str]:
        """Writes what the command reads; returns its first arguments."""
        raise NotImplementedError

    def clear(self) -> None:
        shutil.rmtree(self.output, ignore_errors=True)
        for path in self.folder.glob("answers.sqlite*"):
            path.unlink()

    def warm_up(self) -> None:
        """Does all once in this process, which imports whatever is imported late."""
        assert proxytune(self.command) == 0
        _kept_models.cache_clear()

    def start(self, before: Callable[[], object] = lambda: None) -> Any:
        """The command in a process of its own, which calls `before` first; what it says is in the file `log`."""
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
            sys.argv[1:] = self.command
            status = proxytune()
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        os._exit(status)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def finish(self) -> None:
        process = self.start()
        process.join()
        if process.exitcode != 0:
            raise SystemExit(f"the run failed:\n{self.log}")

    def kept(self) -> dict[str, Any]:
        """What must not be made again: answers in the store and finished results, each with what tells it apart."""
        kept: dict[str, Any] = {str(path): path.stat().st_mtime_ns for path in self.finished()}
        if not self.store.exists():
            return kept
        with sqlite3.connect(self.store) as db:
            if not db.execute("SELECT name FROM sqlite_master WHERE name = 'answers'").fetchall():
                return kept
            return kept | {key: rest for key, *rest in db.execute("SELECT key, checksum, written FROM answers")}

    def finished(self) -> list[Path]:
        return []

    def jobs(self) -> list[Path]:
        """The folders of results."""
        return [self.output]

    def results(self) -> dict[str, bytes]:
        """All that must be the same, by name."""
        return {f"{job.name}/{name}": text for job in self.jobs() for name, text in _results(job).items()}


def _results(folder: Path) -> dict[str, bytes]:
    record = json.loads((folder / "results.json").read_text())
    del record["provenance"]["timings"]
    paths = [*sorted(folder.glob("items/*.jsonl")), folder / "results.csv", folder / "table.md"]
    return {"results.json": json.dumps(record).encode()} | {path.name: path.read_bytes() for path in paths}


class RunWorld(World):
    """A tiny family and two tasks."""

    def begin(self) -> list[str]:
        paths = save_family(self.folder / "family", EXPERTS, EXPERTS)
        self._write("trivia", lambda i: {"question": f"where does the river {i} begin ?", "answer": "the sea"})
        self._write("tqa", lambda i: {"question": f"how many {i} ?", "choices": [" 12", " the sea"], "label": i % 2})
        members = [f"+models.experts.{name}.path={paths[f'expert:{name}']}" for name in EXPERTS]
        members += [f"+models.tuned.{name}.path={paths[f'tuned:{name}']}" for name in EXPERTS]
        return [
            "run",
            "models=local",
            f"models.base.path={paths['base']}",
            f"models.antiexpert.path={paths['antiexpert']}",
            *members,
            "task=miniature",
            "task.names=[miniature_trivia,miniature_tqa]",
            f"task.data_dir={self.folder / 'data'}",
            "only=[base,tuned,proxy,dynamic]",
        ]

    def _write(self, task: str, row: Callable[[int], dict[str, Any]]) -> None:
        path = self.folder / "data" / task / "test.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(row(i)) + "\n" for i in range(ITEMS)))


class SweepWorld(RunWorld):
    """The same with two values of alpha, a job each."""

    def begin(self) -> list[str]:
        return [*super().begin(), "-m", "arms.proxy.rule.weights=0.5,1.5"]

    def jobs(self) -> list[Path]:
        return [self.output / "0", self.output / "1"]

    def finished(self) -> list[Path]:
        """Results whose job has ended: those of a job that died after writing them are written again."""
        noted = [job for job in self.jobs() if '"finished"' in _text(job / "run.json")]
        return [job / "results.json" for job in noted]

    def results(self) -> dict[str, bytes]:
        return super().results() | {name: (self.output / name).read_bytes() for name in ("sweep.csv", "sweep.md")}


class BuildWorld(World):
    """A miniature that is trained first, as small as the tests' own, and one short run."""

    phases = ("training",)

    def begin(self) -> list[str]:
        os.environ["PROXYTUNE_CACHE"] = str(self.folder / "cache")
        return ["run", "miniature=tiny", "task.names=[miniature_tqa]", "limit=2", "only=[base,proxy]"]

    def warm_up(self) -> None:
        """Nothing: torch cannot train in a process that was forked from one that has."""

    def clear(self) -> None:
        super().clear()
        shutil.rmtree(self.folder / "cache", ignore_errors=True)

    def finished(self) -> list[Path]:
        """The weights of the models that are complete: a model's folder gets its name when it is."""
        weights = self.folder.glob("cache/miniature/*/*/model.safetensors")
        return sorted(path for path in weights if path.parent.name.partition("-")[0] in KINDS)

    def results(self) -> dict[str, bytes]:
        paths = [path for path in sorted(self.folder.glob("cache/**/*")) if path.is_file()]
        made = {str(path): path.read_bytes() for path in paths if path.name not in ("training.json", ".lock")}
        return super().results() | made


KINDS = ("base", "antiexpert", "expert", "tuned")
WORLDS: dict[str, type[World]] = {"run": RunWorld, "sweep": SweepWorld, "build": BuildWorld}


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
