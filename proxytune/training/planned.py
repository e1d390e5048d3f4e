"""The trainings of one command: which models, from what and on which examples, and running each of them."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from proxytune.console import loading_bars
from proxytune.engines.hf.batching import is_out_of_memory
from proxytune.errors import UserError
from proxytune.models import FamilySpec, Source, identity, trained
from proxytune.models.loading.load import check_tunable, load_for_tuning
from proxytune.models.loading.memory import check_training_memory
from proxytune.provenance import code_facts, library_versions
from proxytune.tasks import brought_by_family, find, training_examples
from proxytune.training import folder as files
from proxytune.training.recipe import STARTS, Examples, Recipe, Tuning

log = logging.getLogger(__name__)

MULTITASK = "multitask"
"""The name of the model that is trained on the examples of all tasks."""


class Training(NamedTuple):
    """One model to train."""

    kind: str
    """experts or tuned."""
    name: str
    source: Source
    recipe: Recipe
    folder: Path

    def finished(self) -> dict[str, Any] | None:
        """What its recipe.json says; None: it is still to be done. Raises UserError as `folder.finished` does."""
        return files.finished(self.folder, self.recipe)

    def run(self) -> dict[str, Any]:
        """Trains the model; returns what its recipe.json says. Raises UserError as `tune` does, and for too little
        memory."""
        from proxytune.training.sft import tune

        tuning = self.recipe.tuning
        provenance = {"code": code_facts(), "libraries": library_versions() | {"trl": version("trl")}}
        try:
            with loading_bars():
                model, tokenizer = load_for_tuning(STARTS[self.kind], self.source)
                return tune(model, tokenizer, self.recipe.examples, self.folder, tuning, self.recipe.start, provenance)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                f"{self.kind} {self.name}: out of memory with training.device_batch={tuning.device_batch}; re-run the "
                "same command with a smaller one or with training.gradient_checkpointing=true to resume"
            ) from error

    def remember(self, recipe_hash: str) -> None:
        """Notes how `trained:<recipe_hash>` is loaded; that it can't be noted takes nothing from the model."""
        source = {"path": str(self.folder.resolve())}
        if self.recipe.tuning.method == "lora":
            # The number type too, so that the expert and the antiexpert are one module.
            names, start = ("path", "revision", "gguf_file", "dtype"), self.source.module
            fields = {name: getattr(start, name) for name in names if getattr(start, name) is not None}
            source = {**fields, "adapter": source["path"]}
        try:
            trained.remember(recipe_hash, self.folder, source)
        except UserError as error:
            log.warning("%s cannot be found by its hash: %s", self.folder, error)


def plan(
    family: FamilySpec, kinds: Sequence[str], examples: Mapping[str, Examples], tuning: Tuning, folder: Path
) -> list[Training]:
    """The training of each name in `examples` for each of `kinds`, into <folder>/<kind>/<name>.

    Raises UserError for a member from which no training can start.
    """
    sources = {kind: family.weights(STARTS[kind]) for kind in kinds}
    for kind, source in sources.items():
        check_tunable(STARTS[kind], source)
    return [
        Training(kind, name, source, Recipe(tuning, own, identity(source)), folder / kind / name)
        for kind, source in sources.items()
        for name, own in examples.items()
    ]


def examples_by_model(
    tasks: Sequence[str], multitask: bool, data_dir: str | None, brought: str | None
) -> dict[str, Examples]:
    """The training examples of each model by its name: that of the expert that belongs to the task.

    `tasks` are full names. Their data are in `data_dir`, or None: in `brought`, the family's own, or on the hub.
    """
    examples: dict[str, list[tuple[str, str]]] = {}
    for task in tasks:
        with brought_by_family(task, None if data_dir else brought):
            own = training_examples(task, data_dir or brought)
        name = MULTITASK if multitask else find(task).extras.expert or task
        if name in examples and not multitask:
            raise UserError(f"several of the tasks train {name!r}: name one of them, or give multitask=true")
        examples.setdefault(name, []).extend(own)
    return dict(examples)


def check_memory(trainings: Sequence[Training]) -> None:
    """Raises UserError for a kind of model whose training does not fit into the memory of its device."""
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        return  # no device holds all of it
    for training in {training.kind: training for training in trainings}.values():
        tuning = training.recipe.tuning
        check_training_memory(training.kind, training.source, tuning.lora_rank if tuning.method == "lora" else None)
