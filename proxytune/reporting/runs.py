"""Runs on disk: which there are, and what came out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from proxytune.errors import UserError
from proxytune.record import FILE, ArmRecord, Record, TaskRecord, read_record
from proxytune.reporting.tables import best_fused
from proxytune.reporting.terminal import show


def show_run(folder: str | Path, console: Console | None = None) -> None:
    """Prints the tables of a finished run again."""
    show(read_record(folder), console)


def list_runs(
    folder: str | Path,
    console: Console | None = None,
    wanted: Mapping[str, str] | None = None,
    sort: str | None = None,
) -> None:
    """Prints every finished run under `folder`, the oldest first, with its tasks beside it; raises UserError if none.

    Only those that are `wanted` (key -> value, see `_is_wanted`), and in the order of the key `sort`, if given.

    A run is named by its folder, when it was finished, and those of its overrides that not all of the runs were given.
    """
    console = console or Console()
    paths = sorted(Path(folder).rglob(FILE), key=lambda path: path.stat().st_mtime)
    if not paths:
        raise UserError(f"{folder}: no finished run (no {FILE}) in or under this folder")
    runs, faults = [], []
    for path in paths:
        try:
            given = [one for one in overrides_of(path.parent) if not one.startswith("output=")]
            runs.append(_Run(path, read_record(path), given))
        except UserError as error:
            faults.append(str(error))
    chosen = [run for run in runs if _is_wanted(run.record, wanted or {})]
    if runs and not chosen:
        asked = " ".join(f"{key}={value}" for key, value in (wanted or {}).items())
        raise UserError(f"{folder}: none of {len(runs)} finished runs has {asked}")
    console.print(_listing(chosen if sort is None else _sorted(chosen, sort)))
    for fault in faults:
        console.print(Text(fault, style="dim"))


class _Run(NamedTuple):
    results: Path
    record: Record
    given: list[str]


def _is_wanted(record: Record, wanted: Mapping[str, str]) -> bool:
    """Whether the run has the tag, a task whose name begins so, and these values of the configuration's keys."""
    config = record.provenance.config or {}
    for key, value in wanted.items():
        if key == "tag":
            found = value in (config.get("tags") or ())
        elif key == "task":
            found = any(task.startswith(value) for task in record.tasks)
        else:
            found = _text(config, key.split(".")) == value
        if not found:
            return False
    return True


def _sorted(runs: Sequence[_Run], key: str) -> list[_Run]:
    """By the value of a key of their configurations: numbers, then texts, then the runs that lack it."""
    values = [_text(run.record.provenance.config or {}, key.split(".")) for run in runs]
    if not any(value is not None for value in values):
        raise UserError(f"sort={key}: no run has this key in its configuration")
    order = sorted(range(len(runs)), key=lambda number: _rank(values[number]))
    return [runs[number] for number in order]


def _rank(value: str | None) -> tuple[int, float, str]:
    if value is None:
        return 2, 0.0, ""
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    return (1, 0.0, value) if math.isnan(number) else (0, number, "")


def _text(config: Any, path: Sequence[str]) -> str | None:
    """The value at `path` as a command line has it; None where there is none."""
    for part in path:
        if not isinstance(config, Mapping) or part not in config:
            return None
        config = config[part]
    return "null" if config is None else str(config).lower() if isinstance(config, bool) else str(config)


def overrides_of(folder: Path) -> list[str]:
    """What Hydra noted of the run's command line; nothing of a run that no command line began."""
    path = folder / ".hydra" / "overrides.yaml"
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not isinstance(given, list):
        raise UserError(f"cannot read {path}: it is no list of overrides")
    return [str(override) for override in given]


def _listing(runs: Sequence[_Run]) -> RichTable:
    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("run", overflow="fold")
    table.add_column("task", overflow="fold")
    for heading in ("n", "base", "tuned"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("best fused", overflow="fold")
    shared = set.intersection(*(set(run.given) for run in runs)) if runs else set()
    for run in runs:
        finished = f"{datetime.fromtimestamp(run.results.stat().st_mtime):%Y-%m-%d %H:%M}"
        name = [str(run.results.parent), finished, *(given for given in run.given if given not in shared)]
        for line, cells in zip_longest(name, _rows(run.record), fillvalue=""):
            table.add_row(Text(line), *map(Text, cells))
    return table


def _rows(record: Record) -> Iterator[list[str]]:
    """Task, n, base, tuned, best fused."""
    for name, task in record.tasks.items():
        yield [name, str(task.n), *_headline(task)]
    for name, arms in record.failed.items():
        yield [name, "", "", "", f"failed: {', '.join(arms)}"]


def _headline(task: TaskRecord) -> Iterator[str]:
    """The values of base and tuned where they are arms, and the best arm with a rule."""
    for reference in ("base", "tuned"):
        arm = task.references.get(reference)
        yield "" if arm is None else _value(task, task.arms[arm])
    best = best_fused(task)
    yield f"{best[0]} {_value(task, task.arms[best[0]])}" if best else ""


def _value(task: TaskRecord, arm: ArmRecord) -> str:
    if arm.value is None:
        return "–"
    return f"{arm.value * 100:.1f} %" if task.is_fraction else f"{arm.value:.1f}"
