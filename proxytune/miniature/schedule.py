"""Train the models in parallel, one thread each, in an order that respects what starts from what."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing.queues import Queue
from pathlib import Path

from proxytune.atomic import atomic_folder
from proxytune.console import Report, loading_bars, progress_bars
from proxytune.miniature.recipe import BUILDS, ModelBuild, Recipe
from proxytune.miniature.training import train
from proxytune.models.threads import one_thread
from proxytune.provenance import available_cores
from proxytune.training.recipe import Examples

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
TINY_STORIES = 500
_reports: Queue[tuple[str, int, int]]
"""In a worker: where it puts how far its training is."""


def train_all(recipe: Recipe, folder: Path, examples: Mapping[str, Examples], workers: int | None = None) -> None:
    """Train every model that `folder` lacks; `examples[task]` holds the prompts and answers to tune on.

    `workers` processes share the work; their number does not change the models. None: one per core, at most two, or
    none besides this one for a tiny corpus, which takes less time than starting a process.
    Raises what a training raises, once those that still run have ended; the models that are complete stay.
    """
    missing = [build for build in BUILDS if not (folder / build.name).exists()]
    log.info("training %d models of the miniature, once: they stay in the cache", len(missing))
    if workers is None:
        workers = 1 if recipe.corpus.stories < TINY_STORIES else min(2, available_cores())
    try:
        with progress_bars() as report:
            if workers == 1:
                for build in sorted(missing, key=lambda build: build.parent is not None):
                    _train(recipe, build, examples, folder, report)
            else:
                _train_in_parallel(recipe, missing, examples, folder, workers, report)
    except KeyboardInterrupt as stop:
        done = sum((folder / build.name).exists() for build in BUILDS)
        said = f"{done} of the miniature's {len(BUILDS)} models are complete and kept, those in training start again"
        raise KeyboardInterrupt(said) from stop


def _train(recipe: Recipe, build: ModelBuild, examples: Mapping[str, Examples], folder: Path, report: Report) -> None:
    def write(target: Path) -> None:
        train(recipe, build, examples, folder, target, lambda done, total: report(build.title, done, total))

    # One thread is as fast as two for models of this size, and sums come out in one order.
    with one_thread(), loading_bars(False):
        atomic_folder(folder / build.name, write)


def _train_in_parallel(
    recipe: Recipe,
    builds: Sequence[ModelBuild],
    examples: Mapping[str, Examples],
    folder: Path,
    workers: int,
    report: Report,
) -> None:
    context = multiprocessing.get_context("spawn")  # forking after torch has started its threads can deadlock
    reports = context.Queue()
    waiting = list(builds)
    running: set[Future[None]] = set()
    with ProcessPoolExecutor(workers, context, _start_worker, (reports,)) as pool:
        try:
            while waiting or running:
                ready = [build for build in waiting if build.parent is None or (folder / build.parent).exists()]
                for build in ready[: workers - len(running)]:
                    waiting.remove(build)
                    running.add(pool.submit(_work, recipe, build, examples, folder))
                done, running = wait(running, POLL_SECONDS, FIRST_COMPLETED)
                while not reports.empty():
                    report(*reports.get())
                for future in done:
                    future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker(reports: Queue[tuple[str, int, int]]) -> None:
    global _reports
    _reports = reports
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would finish its training, and then wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(recipe: Recipe, build: ModelBuild, examples: Mapping[str, Examples], folder: Path) -> None:
    _train(recipe, build, examples, folder, lambda *how_far: _reports.put(how_far))
