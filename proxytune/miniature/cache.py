"""The miniature in a cache: the models that ship with the package, unpacked, or models trained here.

A built miniature is a folder named after the hash of its recipe and of the code that made it:
`data/<task>/{train,test}.jsonl`, and one ordinary Hugging Face folder per model. Each part is written under another
name and renamed when it is complete: re-run an interrupted build to resume it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import proxytune.training.loop
from proxytune.atomic import atomic_folder, write_jsonl
from proxytune.console import loading_bars
from proxytune.errors import UserError
from proxytune.folders import cache_root
from proxytune.miniature import shipped
from proxytune.miniature.items import UNSEEN, make_items, unseen_rows
from proxytune.miniature.recipe import BUILDS, MULTITASK, TASKS, Recipe, recipe_from
from proxytune.miniature.world import make_world
from proxytune.models import FamilySpec, Source
from proxytune.tasks import TASKS_DIR
from proxytune.training.recipe import Examples

log = logging.getLogger(__name__)

TRAINING_TIME = "about 5 processor-minutes, once"
HASHED = ("names", "world", "items", "corpus", "untrained", "recipe", "training")
"""The modules of this room on which the built files depend."""


def family(recipe: Mapping[str, Any] | None = None, prompt_loss: bool = False) -> FamilySpec:
    """The miniature as a model family: the models that ship with the package, or models trained here.

    `recipe` holds the fields of `Recipe` and `train`, as conf/miniature does. With `prompt_loss` the experts are those
    trained with some loss on the prompt (`Recipe.prompt_loss`). Raises UserError as `build` does.
    """
    folder = build(*_asked(recipe or {}))
    names = (*TASKS, MULTITASK)
    suffix = "-prompt-loss" if prompt_loss else ""
    return FamilySpec(
        base=Source(str(folder / "base")),
        antiexpert=Source(str(folder / "antiexpert")),
        experts={name: Source(str(folder / f"expert-{name}{suffix}")) for name in names},
        tuned={name: Source(str(folder / f"tuned-{name}")) for name in names},
        data_dir=str(folder / "data"),
    )


def data_folder(recipe: Mapping[str, Any]) -> Path:
    """The data of the miniature that `family` makes of `recipe`; no model is trained. Raises as `family` does."""
    return _untrained(*_asked(recipe), cache_folder()) / "data"


def _asked(values: Mapping[str, Any]) -> tuple[Recipe, bool]:
    """The recipe, and whether its models are to be trained even if the package has them."""
    fields = dict(values)
    train = fields.pop("train", False)
    if not isinstance(train, bool):
        raise UserError(f"miniature.train={train!r} is not allowed: it is true or false")
    return recipe_from(fields), train


def build(recipe: Recipe, train: bool = False, cache: Path | None = None, workers: int | None = None) -> Path:
    """The folder of the miniature, made first where the cache lacks it.

    The default recipe's models are unpacked from the package unless `train` is set. Another seed is trained here; any
    other recipe only with `train` (`workers`: see `train_all`).
    Raises UserError for another recipe, if the cache cannot be written, or if the trained base recalls too few facts.
    """
    folder = _untrained(recipe, train, cache or cache_folder())
    if any(not (folder / one.name).exists() for one in BUILDS):
        from proxytune.miniature.schedule import train_all

        why = "as miniature.train=true asks" if train else "the shipped ones belong to miniature.seed=0"
        log.info("the models of the miniature are trained here, %s (full size: %s)", why, TRAINING_TIME)
        train_all(recipe, folder, load_examples(folder / "data"), workers)
    return folder


def _untrained(recipe: Recipe, train: bool, root: Path) -> Path:
    """The folder of the miniature with its data, and with the models if the package has them."""
    if not train and recipe == Recipe():
        folder = root / f"shipped-{shipped.file_hash()}"
        _make(folder, lambda target: _unpack(recipe, target))
    elif not train and recipe != replace(Recipe(), seed=recipe.seed):
        raise UserError(
            "miniature: the models that ship with the package belong to the default recipe; give miniature.train=true "
            f"to train models of your own ({TRAINING_TIME})"
        )
    else:
        folder = root / fingerprint(recipe)
        _make(folder / "data", lambda target: _write_data(recipe, target))
    rows = unseen_rows(make_world(recipe.world, recipe.seed))
    _make(folder / "data" / UNSEEN, lambda target: write_jsonl(target / "test.jsonl", rows))
    return folder


def cache_folder() -> Path:
    """`$PROXYTUNE_CACHE/miniature`, or `~/.cache/proxytune/miniature`."""
    return cache_root() / "miniature"


def fingerprint(recipe: Recipe) -> str:
    """A hash of the recipe, of the code that turns it into models, and of the prompts of the five tasks."""
    files = [Path(__file__).with_name(f"{name}.py") for name in HASHED]
    files += [Path(proxytune.training.loop.__file__), *(TASKS_DIR / "miniature" / f"{t}.yaml" for t in sorted(TASKS))]
    digest = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def load_examples(data: Path) -> dict[str, Examples]:
    """Prompts and answers of each task's training split, through the YAMLs with which the tasks are evaluated."""
    from proxytune.tasks import training_examples

    return {task: training_examples(f"miniature_{task}", data) for task in TASKS}


def _make(folder: Path, write: Callable[[Path], None]) -> None:
    try:
        atomic_folder(folder, write)
    except OSError as error:
        raise UserError(f"cannot write the cache {folder} ({error.strerror}); set PROXYTUNE_CACHE") from error


def _unpack(recipe: Recipe, folder: Path) -> None:
    _write_data(recipe, folder / "data")
    with loading_bars(False):
        shipped.unpack(recipe, folder)


def _write_data(recipe: Recipe, folder: Path) -> None:
    items = make_items(make_world(recipe.world, recipe.seed), recipe.seed)
    for task in TASKS:
        for split, rows in items[task].items():
            write_jsonl(folder / task / f"{split}.jsonl", rows)
