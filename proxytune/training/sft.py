"""Tune a real model on a task's training split: trl's SFT trainer, peft's LoRA, a weight for every token's loss."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from proxytune.console import progress_bars
from proxytune.models.positions import window
from proxytune.training import folder as files
from proxytune.training.card import make_card, readme
from proxytune.training.examples import encode
from proxytune.training.recipe import Examples, Recipe, Tuning
from proxytune.training.trainer import WeightedTrainer, make_trainer

log = logging.getLogger(__name__)


def tune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    folder: Path,
    tuning: Tuning,
    start: str = "",
    provenance: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Tune `model` on examples and write a Hugging Face folder (or adapter folder) with its recipe.

    Returns what `recipe.json` in the folder holds: the recipe and its hash, counts of examples used and left out,
    losses, times, and `provenance`. A training that was stopped resumes from its last checkpoint in the folder; one
    that is finished is not done again. `start` is the identity of `model`. Full tuning is done in float32, whatever
    `model` has, and rounded once, at the end, to the number type that it had.
    Raises UserError: no example fits, the tokenizer has no end of sequence, the batch cannot be divided among the
    devices, the model cannot read packed examples, the folder holds another training or anything else, the disk takes
    no more (the last checkpoint stays).
    """
    recipe = Recipe(tuning, examples, start)
    if (found := files.finished(folder, recipe)) is not None:
        return found
    longest = min(tuning.max_length, window(model.config) or tuning.max_length)
    dataset = encode(tokenizer, examples, longest, tuning.prompt_loss)
    stored = type(model), model.dtype  # before the trainer wraps it
    if tuning.method == "full":
        model.float()  # in 16 bits most of Adam's small steps round to nothing
    trainer = make_trainer(model, tokenizer, dataset, folder, tuning)
    with files.alone(folder) if trainer.args.should_save else nullcontext():
        _train(trainer, folder, recipe)
        card = make_card(recipe, trainer, len(dataset), provenance or {})
        with files.writing(folder):
            _save(trainer, folder, card, readme(card, str(model.name_or_path)), *stored)
    trainer.accelerator.wait_for_everyone()
    return card


def _train(trainer: WeightedTrainer, folder: Path, recipe: Recipe) -> None:
    """From the last checkpoint in `folder`, if there is one."""
    with trainer.accelerator.main_process_first():
        checkpoint = files.begin(folder, recipe)
    if checkpoint is not None:
        log.info("resuming from %s", checkpoint)
    with progress_bars(None if trainer.args.should_save else False) as trainer.report:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def _save(
    trainer: WeightedTrainer,
    folder: Path,
    card: Mapping[str, Any],
    text: str,
    kind: type[PreTrainedModel],
    dtype: torch.dtype,
) -> None:
    draft = folder / files.UNFINISHED / files.DRAFT
    trainer.save_model(str(draft))
    if trainer.args.should_save:
        if card["tuning"]["method"] == "full" and dtype != torch.float32:
            _round(draft, kind, dtype)
        files.finish(folder, draft, card, text)


def _round(folder: Path, kind: type[PreTrainedModel], dtype: torch.dtype) -> None:
    """Rounds the model in `folder` to `dtype`. From its files: in memory it may be spread over devices."""
    rounded = folder / "rounded"
    kind.from_pretrained(folder, dtype=dtype).save_pretrained(rounded)
    for weights in folder.glob("model*.safetensors*"):
        weights.unlink()
    for file in rounded.iterdir():
        file.replace(folder / file.name)
    rounded.rmdir()
