"""Run the training jobs in parallel, one thread each, in an order that respects what starts from what."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from proxytune.atomic import atomic_folder
from proxytune.miniature.jobs import JOBS, Job, Pairs, run_job
from proxytune.miniature.progress import Report, progress_display
from proxytune.miniature.recipe import Recipe

POLL_SECONDS = 0.2
REPORT_SECONDS = 0.3
TINY_STORIES = 500
_reports: Any = None
"""In a worker: the queue on which it says how far its job is."""


def train_all(recipe: Recipe, folder: Path, pairs: Mapping[str, Pairs], workers: int | None = None) -> None:
    """Train every model that `folder` lacks; `pairs[task]` holds the prompts and answers to tune on.

    `workers` processes share the work; their number does not change the models. None: one per core, at most two, or
    none besides this one for a tiny corpus, which takes less time than starting a process.
    Raises what a job raises, once the jobs that still run have ended; the models that are complete stay.
    """
    missing = [job for job in JOBS if not (folder / job.name).exists()]
    if not missing:
        return
    count = _default_workers(recipe) if workers is None else workers
    with progress_display(missing) as report:
        if count == 1:
            for job in sorted(missing, key=lambda job: job.parent is not None):
                _train(recipe, job, pairs, folder, report)
        else:
            _train_in_parallel(recipe, missing, pairs, folder, count, report)


def _default_workers(recipe: Recipe) -> int:
    return 1 if recipe.corpus.stories < TINY_STORIES else min(2, available_cores())


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _train(recipe: Recipe, job: Job, pairs: Mapping[str, Pairs], folder: Path, report: Report) -> None:
    with _one_thread(), _no_bars():
        atomic_folder(
            folder / job.name,
            lambda target: run_job(
                recipe, job, pairs, folder, target, lambda done, total: report(job.name, done, total)
            ),
        )


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread: as fast as two for models of this size, and sums come out in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _no_bars() -> Iterator[None]:
    """Without transformers' own bars for each small file that it reads or writes."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _train_in_parallel(
    recipe: Recipe, jobs: Sequence[Job], pairs: Mapping[str, Pairs], folder: Path, count: int, report: Report
) -> None:
    context = multiprocessing.get_context("spawn")  # forking after torch has started its threads can deadlock
    reports = context.Queue()
    waiting = list(jobs)
    running: dict[Future[None], Job] = {}
    with ProcessPoolExecutor(count, context, _start_worker, (reports,)) as pool:
        try:
            while waiting or running:
                ready = [job for job in waiting if job.parent is None or (folder / job.parent).exists()]
                for job in ready[: count - len(running)]:
                    waiting.remove(job)
                    running[pool.submit(_work, recipe, job, pairs, folder)] = job
                done, _ = wait(running, POLL_SECONDS, FIRST_COMPLETED)
                while not reports.empty():
                    report(*reports.get())
                for future in done:
                    job = running.pop(future)
                    future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker(reports: Any) -> None:
    global _reports
    _reports = reports


def _work(recipe: Recipe, job: Job, pairs: Mapping[str, Pairs], folder: Path) -> None:
    last = 0.0

    def report(name: str, done: int, total: int) -> None:
        nonlocal last
        if done in (1, total) or time.monotonic() - last > REPORT_SECONDS:
            last = time.monotonic()
            _reports.put((name, done, total))

    _train(recipe, job, pairs, folder, report)
