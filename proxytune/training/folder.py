"""The folder of a training or a merge, finished or not. A process may be killed at any moment and re-run.

<folder>/unfinished/recipe.json         what is being trained, or merged
<folder>/unfinished/lock                held by the process that does it
<folder>/unfinished/checkpoint-<step>/  complete as soon as it has its name: it is written in unfinished/draft
<folder>/*                              the model; recipe.json comes last and says that all is there
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from transformers.trainer_utils import get_last_checkpoint

from proxytune.atomic import write_json
from proxytune.errors import UserError

RECIPE = "recipe.json"
UNFINISHED = "unfinished"
DRAFT = "draft"
_TORCH_WRITER = ("inline_container", "iostream error")
"""One is in the message of a RuntimeError by which torch says that a file could not be written."""
OTHERS = {".hydra", "proxytune.log"}
"""What Hydra may have put into a folder."""


class Work(Protocol):
    """A training or a merge."""

    kind: ClassVar[str]

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the outcome."""

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """How `other` facts differ from these, each as a phrase."""


def finished(folder: Path, work: Work) -> dict[str, Any] | None:
    """What recipe.json says if `work` was done to its end in `folder`; None if it is still to be done.

    Raises UserError if the folder holds other work, or anything else.
    """
    for file in (folder / RECIPE, folder / UNFINISHED / RECIPE):
        if file.is_file():
            facts = _read(file, work.facts)
            if differences := work.differences(facts):
                raise UserError(
                    f"{folder} holds another {work.kind}: {'; '.join(differences)}. Give another output=, or remove it"
                )
            if file.parent != folder:
                return None
            shutil.rmtree(folder / UNFINISHED, ignore_errors=True)  # left by a kill after the last file
            return facts
    if folder.is_dir() and {path.name for path in folder.iterdir()} - OTHERS - {UNFINISHED}:
        raise UserError(f"{folder} is not empty and holds no {work.kind}: give another output=")
    return None


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps other processes from working in `folder`; raises UserError if one does already."""
    unfinished = folder / UNFINISHED
    unfinished.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(unfinished / "lock", blocking=False):
            yield
    except Timeout:
        raise UserError(f"another process works in {folder}: wait for it, or give another output=") from None


def begin(folder: Path, work: Work) -> Path | None:
    """Notes what is being done in `folder`; returns the last complete checkpoint, if there is one."""
    unfinished = folder / UNFINISHED
    shutil.rmtree(unfinished / DRAFT, ignore_errors=True)
    if not (unfinished / RECIPE).is_file():
        write_json(unfinished / RECIPE, work.facts)
    last = get_last_checkpoint(unfinished)
    return None if last is None else Path(last)


def keep(draft: Path, folder: Path) -> None:
    """Makes the checkpoint in `draft` the one that `folder` keeps."""
    _remove_pickle(draft)
    for file in draft.rglob("*"):
        if file.is_file():
            _to_disk(file)
    kept = folder / UNFINISHED / draft.name
    draft.rename(kept)
    for other in kept.parent.glob("checkpoint-*"):
        if other != kept:
            shutil.rmtree(other)


def finish(folder: Path, draft: Path, card: Mapping[str, Any], text: str) -> None:
    """Puts the model in `draft`, its README and its recipe.json into `folder` and removes the checkpoints."""
    _remove_pickle(draft)
    (draft / "README.md").write_text(text, encoding="utf-8")
    for file in sorted(draft.iterdir()):
        _to_disk(file)
        file.replace(folder / file.name)
    write_json(folder / RECIPE, card)
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns errors of torch, safetensors and the system about a file that cannot be written into one line."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(sign in str(error) for sign in _TORCH_WRITER):
            raise
        shutil.rmtree(folder / UNFINISHED / DRAFT, ignore_errors=True)
        last = get_last_checkpoint(folder / UNFINISHED) if (folder / UNFINISHED).is_dir() else None
        kept = f"{Path(last).name} is intact" if last else "there is no checkpoint yet"
        reason = " ".join(str(error).splitlines()[:1])
        advice = "fix its permissions" if isinstance(error, PermissionError) else "make room"
        raise UserError(
            f"cannot write into {folder} ({reason}); {kept}: {advice}, then re-run the same command to resume"
        ) from error


def _remove_pickle(draft: Path) -> None:
    """The trainer writes it, nobody reads it, and it could run code."""
    (draft / "training_args.bin").unlink(missing_ok=True)


def _to_disk(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def _read(file: Path, keys: Iterable[str]) -> dict[str, Any]:
    """What a recipe.json says; raises UserError if it is damaged or lacks one of `keys`."""
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        if facts.keys() >= set(keys):
            return facts
    except (ValueError, AttributeError):
        pass
    raise UserError(f"{file} is damaged, or that of something else: give another output=, or remove {file.parent}")
