"""Tune a real model on a task's training split: trl's SFT trainer, peft's LoRA, loss on the answer only."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from proxytune.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

LORA_TARGETS = "all-linear"


@dataclass(frozen=True)
class Tuning:
    """How a model is tuned; the defaults are the LoRA recipe of Liu et al. 2024 (arXiv 2401.08565)."""

    method: str = "lora"
    """"lora" writes an adapter over the model; "full" writes a whole model."""
    epochs: float = 2.0
    """Passes over the examples; has no effect when `max_steps` is set."""
    max_steps: int | None = None
    """Stop after this many optimiser steps."""
    batch: int = 128
    """Examples per optimiser step, over all devices."""
    device_batch: int = 4
    """Examples per forward pass on one device; must divide `batch`."""
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    warmup_ratio: float = 0.04
    """Share of the steps in which the learning rate rises."""
    prompt_loss: float = 0.0
    """Weight of the loss on the prompt's tokens, the answer's being 1; 0, as in the papers: loss on the answer only. A
    small weight keeps an expert a good model of its own prompts."""
    max_length: int = 2048
    """Longest example in tokens, prompt and answer; longer ones are left out and counted."""
    lora_rank: int = 64
    """Has no effect when method is "full"; so do the next two."""
    lora_alpha: int = 16
    lora_dropout: float = 0.1
    bf16: bool = False
    gradient_checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in ("lora", "full"):
            raise ValueError(f"training.method is {self.method!r}; allowed: lora, full")
        if not 0 <= self.prompt_loss < math.inf:
            raise ValueError(f"training.prompt_loss is {self.prompt_loss}; it is a weight from 0, finite")
        if self.device_batch < 1 or self.batch % self.device_batch:
            raise ValueError(
                f"training.device_batch is {self.device_batch}; it must divide training.batch ({self.batch})"
            )


def tune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[tuple[str, str]],
    folder: Path,
    tuning: Tuning,
) -> dict:
    """Tune `model` on (prompt, answer) pairs and write a Hugging Face folder (or adapter folder) with its recipe.

    Returns what `recipe.json` in the folder holds: the tuning, counts of examples used and left out, losses, times.
    Raises UserError when no example fits into `max_length`.
    """
    from peft import LoraConfig

    from proxytune.training.trainer import WeightedCollator, WeightedTrainer

    dataset = encode(tokenizer, examples, tuning.max_length, tuning.prompt_loss)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    adapter = LoraConfig(
        r=tuning.lora_rank,
        lora_alpha=tuning.lora_alpha,
        lora_dropout=tuning.lora_dropout,
        target_modules=LORA_TARGETS,
        task_type="CAUSAL_LM",
    )
    trainer = WeightedTrainer(
        model=model,
        args=_arguments(tuning, folder),
        data_collator=WeightedCollator(tokenizer.pad_token_id),
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=adapter if tuning.method == "lora" else None,
    )
    started = time.perf_counter()
    outcome = trainer.train()
    seconds = time.perf_counter() - started
    trainer.save_model(str(folder))
    tokenizer.save_pretrained(folder)
    tokens = sum(len(ids) for ids in dataset["input_ids"])
    card = {
        "tuning": asdict(tuning),
        "examples": len(dataset),
        "examples_left_out": len(examples) - len(dataset),
        "tokens_per_epoch": tokens,
        "steps": outcome.global_step,
        "mean_loss": outcome.training_loss,
        "final_loss": next(row["loss"] for row in reversed(trainer.state.log_history) if "loss" in row),
        "seconds": seconds,
    }
    (folder / "recipe.json").write_text(json.dumps(card, indent=2) + "\n")
    return card


def encode(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[tuple[str, str]], max_length: int, prompt_loss: float = 0.0
) -> Dataset:
    """Token ids, labels and weights of each example that fits, ended by the end-of-sequence token.

    The weight of a token's loss is 1 on the answer and its end, and `prompt_loss` on the prompt; a label is the token,
    or −100 where the weight is 0.
    """
    from datasets import Dataset

    rows = [_encode_one(tokenizer, prompt, answer, prompt_loss) for prompt, answer in examples]
    fitting = [row for row in rows if len(row["input_ids"]) <= max_length]
    if not fitting:
        raise UserError(f"none of the {len(rows)} training examples fits into training.max_length={max_length} tokens")
    if len(fitting) < len(rows):
        log.warning("left out %d of %d examples longer than %d tokens", len(rows) - len(fitting), len(rows), max_length)
    return Dataset.from_list(fitting)


def _encode_one(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str, prompt_loss: float) -> dict[str, list]:
    # Tokenised together, as lm-eval tokenises a context with its continuation, so that the boundary is the same.
    ids = [*tokenizer(prompt + answer)["input_ids"], tokenizer.eos_token_id]
    start = len(tokenizer(prompt)["input_ids"])
    weights = [prompt_loss] * start + [1.0] * (len(ids) - start)
    labels = [token if weight else -100 for token, weight in zip(ids, weights, strict=True)]
    return {"input_ids": ids, "labels": labels, "weights": weights}


def _arguments(tuning: Tuning, folder: Path):
    from trl import SFTConfig

    return SFTConfig(
        output_dir=str(folder),
        num_train_epochs=tuning.epochs,
        max_steps=-1 if tuning.max_steps is None else tuning.max_steps,
        per_device_train_batch_size=tuning.device_batch,
        gradient_accumulation_steps=tuning.batch // tuning.device_batch,
        learning_rate=tuning.learning_rate,
        weight_decay=tuning.weight_decay,
        warmup_steps=tuning.warmup_ratio,
        lr_scheduler_type="linear",
        max_length=tuning.max_length,
        bf16=tuning.bf16,
        gradient_checkpointing=tuning.gradient_checkpointing,
        seed=tuning.seed,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
    )
