"""What runs left on disk. The report names parts that are missing or damaged, and is written anyway."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from proxytune.errors import UserError
from proxytune.record import FILE, ITEMS, Record, read_items, read_record
from proxytune.reporting.configurations import Kind, hydra_notes

ITEM_KEYS = {"doc_id", "prompt", "target", "arms"}
"""What every item has."""


@dataclass(frozen=True)
class Run:
    """A folder with `results.json`, or with the items of the tasks that were finished before the run was stopped."""

    folder: Path
    record: Record
    config: dict[str, Any]
    """As resolved, or, without `results.json`, as Hydra noted it before the run began."""
    overrides: list[str]
    """What the command line was given."""
    items: dict[str, list[dict[str, Any]]]
    """Task -> rows of its items' file."""
    missing: list[str] = field(default_factory=list)
    """What is missing, a sentence each."""


def find_runs(paths: Sequence[str | Path]) -> list[Run]:
    """The runs of folders or `results.json` files, and the jobs of sweeps; raises UserError for anything else."""
    return [read_run(folder) for path in paths for folder in _folders(Path(path))]


def _folders(path: Path) -> list[Path]:
    if path.name == FILE and path.is_file():
        return [path.parent]
    if not path.is_dir():
        raise UserError(f"{path} is not a run: give the folder of a run or of a sweep, or a {FILE}")
    if _is_run(path):
        return [path]
    jobs = sorted(filter(_is_run, path.iterdir()), key=lambda job: (len(job.name), job.name))
    if not jobs:
        raise UserError(f"{path} is not a run: there is no {FILE} and no {ITEMS}/<task>.jsonl in it or in its folders")
    return jobs


def _is_run(folder: Path) -> bool:
    return (folder / FILE).is_file() or any((folder / ITEMS).glob("*.jsonl"))


def read_run(folder: Path) -> Run:
    """Raises UserError where `results.json` is there and cannot be read."""
    missing: list[str] = []
    config = _noted(folder, "config", dict, missing)
    record = read_record(folder) if (folder / FILE).is_file() else Record(tasks={})
    items = _items(folder, record, missing)
    if not (folder / FILE).is_file():
        missing.insert(0, _unfinished(items, config))
    missing += [f"{task}: {arm} failed: {why}" for task, arms in record.failed.items() for arm, why in arms.items()]
    overrides = [str(override) for override in _noted(folder, "overrides", list, missing)]
    given = [override for override in overrides if not override.startswith("output=")]
    return Run(folder, record, record.provenance.config or config, given, items, missing)


def _noted(folder: Path, name: str, kind: type[Kind], missing: list[str]) -> Kind:
    """Hydra's notes; empty, and named among what is missing, where they cannot be read."""
    try:
        return hydra_notes(folder, name, kind)
    except UserError as error:
        missing.append(f"{error}.")
        return kind()


def _items(folder: Path, record: Record, missing: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Of the record's tasks; without `results.json`, of all tasks that have items."""
    found = [path.stem for path in sorted((folder / ITEMS).glob("*.jsonl"))]
    finished = (folder / FILE).is_file()
    items = {}
    for task in record.tasks if finished else found:
        try:
            items[task] = _rows(folder, task)
        except UserError as error:
            missing.append(f"The items of {task} are missing: {error}.")
    if finished and (others := [task for task in found if task not in record.tasks]):
        missing.append(f"Items of tasks that are not in {FILE} are left out: {', '.join(others)}.")
    return items


def _rows(folder: Path, task: str) -> list[dict[str, Any]]:
    rows = read_items(folder, task)
    if rows is None:
        raise UserError(f"there is no {folder / ITEMS / task}.jsonl")
    if not all(isinstance(row, dict) and row.keys() >= ITEM_KEYS for row in rows):
        raise UserError(f"a line is not an item with {', '.join(sorted(ITEM_KEYS))}")
    return rows


def _unfinished(items: Collection[str], config: dict[str, Any]) -> str:
    asked = (config.get("task") or {}).get("names") or []
    wanted = f"; the run was to evaluate {', '.join(map(str, asked))}" if asked else ""
    return (
        f"This run is not finished: there is no {FILE}, and therefore no scores. It has items of "
        f"{', '.join(items) or 'no task'}{wanted}."
    )
