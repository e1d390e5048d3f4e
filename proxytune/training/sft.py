"""Tune a real model on a task's training split: trl's SFT trainer, peft's LoRA, a weight for every token's loss."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from proxytune.errors import UserError
from proxytune.models.vocabulary import token_ids
from proxytune.training import folder as files
from proxytune.training.card import make_card, readme
from proxytune.training.recipe import Recipe, Tuning

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from proxytune.training.trainer import WeightedTrainer

log = logging.getLogger(__name__)

LORA_TARGETS = "all-linear"
_WHICH = "(training.max_length or the model's window, whichever is less)"


def tune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[tuple[str, str]],
    folder: Path,
    tuning: Tuning,
    start: str = "",
    provenance: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Tune `model` on (prompt, answer) pairs and write a Hugging Face folder (or adapter folder) with its recipe.

    Returns what `recipe.json` in the folder holds: the recipe and its hash, counts of examples used and left out,
    losses, times, and `provenance`. A training that was stopped goes on from its last checkpoint in the folder; one
    that is finished is not done again. `start` is the identity of `model`. Full tuning is done in float32, whatever
    `model` has, and rounded once, at the end, to the number type that it had.
    Raises UserError: no example fits, the tokenizer has no end of sequence, the batch cannot be divided among the
    devices, the model cannot read packed examples, the folder holds another training or anything else, the disk takes
    no more (the last checkpoint stays).
    """
    recipe = Recipe(tuning, examples, start)
    if (found := files.finished(folder, recipe)) is not None:
        return found
    window = getattr(model.config, "max_position_embeddings", tuning.max_length)
    dataset = encode(tokenizer, examples, min(tuning.max_length, window), tuning.prompt_loss)
    stored = type(model), model.dtype  # before the trainer wraps it
    if tuning.method == "full":
        model.float()  # in 16 bits most of Adam's small steps round to nothing
    trainer = _trainer(model, tokenizer, dataset, folder, tuning)
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
        log.info("going on from %s", checkpoint)
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


def encode(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[tuple[str, str]], max_length: int, prompt_loss: float = 0.0
) -> Dataset:
    """Token ids, labels and weights of each example that fits, ended by the end-of-sequence token.

    The weight of a token's loss is 1 on the answer and its end, and `prompt_loss` on the prompt; a label is the token,
    or −100 where the weight is 0.
    """
    from datasets import Dataset

    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no end-of-sequence token, with which answers end: give it an eos_token")
    rows = [_encode_one(tokenizer, prompt, answer, prompt_loss) for prompt, answer in examples]
    fitting = [row for row in rows if len(row["input_ids"]) <= max_length]
    if not fitting:
        raise UserError(f"none of the {len(rows)} training examples fits into {max_length} tokens {_WHICH}")
    if left_out := len(rows) - len(fitting):
        log.warning("left out %d of %d examples longer than %d tokens %s", left_out, len(rows), max_length, _WHICH)
    return Dataset.from_list(fitting)


def _encode_one(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str, prompt_loss: float) -> dict[str, list]:
    # Tokenised together, as lm-eval tokenises a context with its continuation, so that the boundary is the same.
    ids = [*token_ids(tokenizer, prompt + answer), tokenizer.eos_token_id]
    start = len(token_ids(tokenizer, prompt))
    weights = [prompt_loss] * start + [1.0] * (len(ids) - start)
    labels = [token if weight else -100 for token, weight in zip(ids, weights, strict=True)]
    return {"input_ids": ids, "labels": labels, "weights": weights}


def _trainer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dataset: Dataset, folder: Path, tuning: Tuning
) -> WeightedTrainer:
    from datasets import Dataset, concatenate_datasets
    from peft import LoraConfig
    from transformers import PrinterCallback

    from proxytune.compat.transformers import is_spread
    from proxytune.training.trainer import FILLER, WeightedCollator, WeightedTrainer

    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    arguments = _arguments(tuning, folder)
    if arguments.n_gpu > 1 and not is_spread(model):
        raise UserError(
            f"{arguments.n_gpu} GPUs are visible to one process: start it with torchrun --nproc_per_node "
            f"{arguments.n_gpu} -m proxytune train ..., or let it see one (CUDA_VISIBLE_DEVICES=0)"
        )
    adapter = LoraConfig(
        r=tuning.lora_rank,
        lora_alpha=tuning.lora_alpha,
        lora_dropout=tuning.lora_dropout,
        target_modules=LORA_TARGETS,
        task_type="CAUSAL_LM",
    )
    trainer = WeightedTrainer(
        model=model,
        args=arguments,
        data_collator=WeightedCollator(tokenizer.pad_token_id, padding_free=tuning.packing),
        train_dataset=concatenate_datasets([dataset, Dataset.from_list([FILLER])]),
        processing_class=tokenizer,
        peft_config=adapter if tuning.method == "lora" else None,
    )
    trainer.remove_callback(PrinterCallback)
    if tuning.packing and not trainer.is_fsdp_enabled:  # whose weights are put in their places later
        with torch.autocast(arguments.device.type, torch.bfloat16, enabled=tuning.bf16):
            _check_packing(model.eval())
    return trainer


def _check_packing(model: PreTrainedModel) -> None:
    """Raises UserError if what `model` says of an example depends on the one that is packed before it."""
    from proxytune.training.trainer import WeightedCollator

    ids = list(range(8))
    first, other, last = (
        {"input_ids": tokens, "labels": 8 * [-100], "weights": 8 * [0.0]} for tokens in (ids, ids[::-1], ids)
    )
    found = []
    with torch.no_grad():
        for before in (first, other):
            batch = WeightedCollator(0, padding_free=True)([before, last])
            inputs = {name: batch[name].to(model.device) for name in ("input_ids", "position_ids")}
            found.append(model(**inputs, use_cache=False).logits[0, 8:].float())
    # Experts of a mixture may be called with other numbers of tokens: equal but for rounding.
    if (found[0] - found[1]).abs().max() > 0.02 * found[0].abs().max():
        raise UserError("training.packing=true: the attention of this model mixes packed examples; set it to false")


def _arguments(tuning: Tuning, folder: Path):
    from trl import SFTConfig

    if tuning.epochs is not None and tuning.max_steps is not None:
        log.info("training.max_steps=%d decides: training.epochs has no effect", tuning.max_steps)
    arguments = SFTConfig(
        output_dir=str(folder),
        num_train_epochs=tuning.epochs or 1,  # has no effect beside max_steps
        max_steps=-1 if tuning.max_steps is None else tuning.max_steps,
        per_device_train_batch_size=tuning.device_batch,
        learning_rate=tuning.learning_rate,
        weight_decay=tuning.weight_decay,
        warmup_steps=tuning.warmup_ratio,
        lr_scheduler_type="linear",
        max_length=tuning.max_length,
        bf16=tuning.bf16,
        use_cpu=not torch.cuda.is_available(),  # without it, bf16 is refused there
        gradient_checkpointing=tuning.gradient_checkpointing,
        seed=tuning.seed,
        logging_steps=1,
        save_strategy="no" if tuning.checkpoint_steps is None else "steps",
        save_steps=tuning.checkpoint_steps or 1,
        report_to="none",
        disable_tqdm=not sys.stderr.isatty(),
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
    )
    arguments.gradient_accumulation_steps = tuning.accumulation(arguments.world_size)
    return arguments
