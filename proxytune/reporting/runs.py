"""Runs on disk: which there are, and what came out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.text import Text

from proxytune.errors import UserError
from proxytune.record import FILE, Record, read_record
from proxytune.reporting.runs_table import ListedRun, listing
from proxytune.reporting.speeds import speeds
from proxytune.reporting.terminal import show


def show_run(folder: str | Path, console: Console | None = None) -> None:
    """Prints the tables of a finished run again, and how fast its answers were computed."""
    record, console = read_record(folder), console or Console()
    show(record, console)
    for line in speeds(record):
        console.print(Text(line, style="dim"))


def list_runs(
    folder: str | Path,
    console: Console | None = None,
    wanted: Mapping[str, str] | None = None,
    sort: str | None = None,
) -> None:
    """Prints every finished run under `folder`, the oldest first, with its tasks beside it; raises UserError if none.

    Only those that are `wanted` (key -> value, see `_is_wanted`), and in the order of the key `sort`, if given.

    A run is told apart by its folder, when it was finished, and the keys whose values are not the same in all of them.
    """
    console = console or Console()
    paths = sorted(Path(folder).rglob(FILE), key=lambda path: path.stat().st_mtime)
    if not paths:
        raise UserError(f"{folder}: no finished run (no {FILE}) in or under this folder")
    runs, faults = [], []
    for path in paths:
        try:
            runs.append(ListedRun(path, read_record(path), _pairs(overrides_of(path.parent))))
        except UserError as error:
            faults.append(str(error))
    chosen = [run for run in runs if _is_wanted(run.record, wanted or {})]
    if runs and not chosen:
        asked = " ".join(f"{key}={value}" for key, value in (wanted or {}).items())
        raise UserError(f"{folder}: none of {len(runs)} finished runs has {asked}")
    table, notes = listing(chosen if sort is None else _sorted(chosen, sort), (wanted or {}).get("task", ""))
    console.print(table)
    for line in (*notes, *faults):
        console.print(Text(line, style="dim"))


def _pairs(overrides: Sequence[str]) -> dict[str, str]:
    """Key -> value; a key that was taken away (~key) has no value."""
    return {key.lstrip("+"): value for key, _, value in (override.partition("=") for override in overrides)}


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


def _sorted(runs: Sequence[ListedRun], key: str) -> list[ListedRun]:
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
