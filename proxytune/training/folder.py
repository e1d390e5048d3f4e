"""The folder of a training, finished or not, so that a training may be killed at any moment and started again.

<folder>/unfinished/recipe.json         what is being trained
<folder>/unfinished/lock                held by the process that is training
<folder>/unfinished/checkpoint-<step>/  complete as soon as it has its name: it is drafted in unfinished/draft
<folder>/*                              the model; recipe.json comes last and says that all is there
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from transformers.trainer_utils import get_last_checkpoint

from proxytune.drafts import whole_file
from proxytune.errors import UserError
from proxytune.training.recipe import Recipe

RECIPE = "recipe.json"
UNFINISHED = "unfinished"
DRAFT = "draft"
_PICKLES = ("training_args.bin",)
"""What the trainer writes, nobody reads, and could run code."""
OTHERS = {".hydra", "proxytune.log"}
"""What Hydra may have put into a folder."""


def finished(folder: Path, recipe: Recipe) -> dict[str, Any] | None:
    """What recipe.json says if `recipe` was trained to its end in `folder`; None if it is still to be done.

    Raises UserError if the folder holds the training of another recipe, or anything else.
    """
    for file in (folder / RECIPE, folder / UNFINISHED / RECIPE):
        if file.is_file():
            found = read(file)
            if differences := recipe.differences(found):
                raise UserError(
                    f"{folder} holds another training: {'; '.join(differences)}. Give another output=, or remove it"
                )
            return found if file.parent == folder else None
    if folder.is_dir() and {path.name for path in folder.iterdir()} - OTHERS - {UNFINISHED}:
        raise UserError(f"{folder} is not empty and holds no training: give another output=")
    return None


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps other processes from training in `folder`; raises UserError if one does already."""
    unfinished = folder / UNFINISHED
    unfinished.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(unfinished / "lock", blocking=False):
            yield
    except Timeout:
        raise UserError(f"another process is training in {folder}: wait for it, or give another output=") from None


def begin(folder: Path, recipe: Recipe) -> Path | None:
    """Notes what is being trained in `folder`; returns the last complete checkpoint, if there is one."""
    unfinished = folder / UNFINISHED
    shutil.rmtree(unfinished / DRAFT, ignore_errors=True)
    if not (unfinished / RECIPE).is_file():
        _write(unfinished / RECIPE, recipe.facts)
    last = get_last_checkpoint(unfinished)
    return None if last is None else Path(last)


def keep(draft: Path, folder: Path) -> None:
    """Makes a drafted checkpoint the one that `folder` keeps."""
    _remove_pickles(draft)
    for file in draft.rglob("*"):
        if file.is_file():
            _to_disk(file)
    kept = folder / UNFINISHED / draft.name
    draft.rename(kept)
    for other in kept.parent.glob("checkpoint-*"):
        if other != kept:
            shutil.rmtree(other)


def finish(folder: Path, draft: Path, card: Mapping[str, Any], text: str) -> None:
    """Puts the drafted model, its README and its recipe.json into `folder`; the checkpoints go."""
    _remove_pickles(draft)
    (draft / "README.md").write_text(text, encoding="utf-8")
    for file in sorted(draft.iterdir()):
        _to_disk(file)
        file.replace(folder / file.name)
    _write(folder / RECIPE, card)
    shutil.rmtree(folder / UNFINISHED)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns what torch, safetensors and the system say of a disk that takes no more into one line."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        shutil.rmtree(folder / UNFINISHED / DRAFT, ignore_errors=True)
        last = get_last_checkpoint(folder / UNFINISHED) if (folder / UNFINISHED).is_dir() else None
        kept = f"{Path(last).name} is intact" if last else "there is no checkpoint yet"
        reason = " ".join(str(error).splitlines()[:1])
        raise UserError(
            f"cannot write into {folder} ({reason}); {kept}: make room, and the same command goes on from there"
        ) from error


def _remove_pickles(folder: Path) -> None:
    for name in _PICKLES:
        (folder / name).unlink(missing_ok=True)


def _to_disk(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def read(file: Path, keys: Iterable[str] = ("tuning", "data", "start")) -> dict[str, Any]:
    """What a recipe.json says; raises UserError if it is damaged or lacks one of `keys`."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found.keys() >= set(keys):
            return found
    except (ValueError, AttributeError):
        pass
    raise UserError(f"{file} is damaged, or that of something else: give another output=, or remove {file.parent}")


def _write(file: Path, values: Mapping[str, Any]) -> None:
    with whole_file(file) as stream:
        stream.write(json.dumps(values, indent=2) + "\n")
