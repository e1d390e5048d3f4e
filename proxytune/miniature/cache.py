"""Build the miniature: write the world's data, train its models, keep all of it in a cache.

A built miniature is a folder named after the hash of its recipe and of the code that made it:
`data/<task>/{train,test}.jsonl`, and one ordinary Hugging Face folder per model. Each part is written under another
name and renamed when it is complete, so that an interrupted build resumes where it stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import proxytune.training.loop
from proxytune.atomic import atomic_folder
from proxytune.errors import UserError
from proxytune.folders import cache_root
from proxytune.miniature.items import make_items
from proxytune.miniature.recipe import MULTITASK, TASKS, Recipe, recipe_from
from proxytune.miniature.training import BUILDS
from proxytune.miniature.world import make_world
from proxytune.models import FamilySpec, Source
from proxytune.tasks import TASKS_DIR
from proxytune.training.recipe import Examples

HASHED = ("names", "world", "generators", "items", "corpus", "untrained", "recipe", "training")
"""The modules of this room on which the built files depend."""


def family(recipe: Mapping[str, Any] | None = None) -> FamilySpec:
    """The miniature as a model family, built first where the cache lacks it. Raises UserError as `build` does.

    `recipe` holds the fields of `Recipe`, as conf/miniature does.
    """
    folder = build(recipe_from(recipe or {}))
    names = (*TASKS, MULTITASK)
    return FamilySpec(
        base=Source(str(folder / "base")),
        antiexpert=Source(str(folder / "antiexpert")),
        experts={name: Source(str(folder / f"expert-{name}")) for name in names},
        tuned={name: Source(str(folder / f"tuned-{name}")) for name in names},
        data_dir=str(folder / "data"),
    )


def build(recipe: Recipe, cache: Path | None = None, workers: int | None = None) -> Path:
    """The folder of the built miniature; what it lacks is made first (`workers`: see `train_all`).

    Raises UserError when the cache cannot be written, or when the base does not recall the world's facts.
    """
    folder = (cache or cache_folder()) / fingerprint(recipe)
    try:
        atomic_folder(folder / "data", lambda target: _write_data(recipe, target))
    except OSError as error:
        raise UserError(f"cannot write the cache {folder} ({error.strerror}); set PROXYTUNE_CACHE") from error
    if any(not (folder / one.name).exists() for one in BUILDS):
        from proxytune.miniature.schedule import train_all

        train_all(recipe, folder, load_examples(folder / "data"), workers)
    return folder


def cache_folder() -> Path:
    """`$PROXYTUNE_CACHE/miniature`, or `~/.cache/proxytune/miniature`."""
    return cache_root() / "miniature"


def fingerprint(recipe: Recipe) -> str:
    """A hash of the recipe, of the code that turns it into models, and of the prompts of the five tasks."""
    files = [Path(__file__).with_name(f"{name}.py") for name in HASHED]
    files += [Path(proxytune.training.loop.__file__), *sorted((TASKS_DIR / "miniature").glob("*.yaml"))]
    digest = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def load_examples(data: Path) -> dict[str, Examples]:
    """Prompts and answers of each task's training split, through the YAMLs with which the tasks are evaluated."""
    from proxytune.tasks import training_examples

    return {task: training_examples(f"miniature_{task}", data) for task in TASKS}


def _write_data(recipe: Recipe, folder: Path) -> None:
    items = make_items(make_world(recipe.world, recipe.seed), recipe.seed)
    for task in TASKS:
        (folder / task).mkdir()
        for split, rows in items[task].items():
            lines = (json.dumps(row) + "\n" for row in rows)
            (folder / task / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
