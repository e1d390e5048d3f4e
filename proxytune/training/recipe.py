"""Everything that determines a training's weights, and how two recipes differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from proxytune.errors import UserError
from proxytune.validation import Count, NonNegative, Positive, strict_dataclass

ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
Examples = Sequence[tuple[str, str]]
"""Prompts and answers."""
STARTS = {"experts": "antiexpert", "tuned": "base"}
"""Kind of model that is trained -> the member of the family that it starts from."""


@strict_dataclass("training")
class Tuning:
    """How a model is tuned; the defaults are the LoRA recipe of Liu et al. 2024 (arXiv 2401.08565)."""

    method: Literal["lora", "full"] = "lora"
    """lora (writes an adapter over the model) or full (writes a whole model)"""
    epochs: Positive | None = 2.0
    """a number above 0, or null: passes over the examples. The command reports that `max_steps` overrides it."""
    max_steps: Count | None = None
    """an integer from 1, or null: stop after this many optimiser steps"""
    batch: Count = 128
    """an integer from 1: examples per optimiser step, over all devices"""
    device_batch: Count = 4
    """an integer from 1 that divides `batch`: examples per forward pass on one device"""
    learning_rate: Positive = 1e-4
    """a number above 0"""
    weight_decay: NonNegative = 0.0
    """a number from 0"""
    warmup_ratio: ShareBelowOne = 0.04
    """a number from 0 and below 1: the share of steps in which the learning rate rises"""
    prompt_loss: NonNegative = 0.0
    """a number from 0: the weight of the loss on the prompt's tokens, the answer's being 1. 0, as in the papers: loss
    on the answer only. A small weight keeps an expert a good model of its own prompts."""
    max_length: Count = 2048
    """an integer from 1: the longest example in tokens, prompt and answer. Longer ones are left out and counted."""
    lora_rank: Count = 64
    """an integer from 1. Has no effect when method is "full"; the same holds for the next two."""
    lora_alpha: Count = 16
    """an integer from 1"""
    lora_dropout: ShareBelowOne = 0.1
    """a share from 0 and below 1"""
    packing: bool = False
    """true or false: whether the examples of a forward pass stand in one row, out of sight of each other, instead of in
    rows with padding"""
    bf16: bool = False
    """true or false: whether products are calculated in bfloat16. What is trained, and Adam's moments, are float32 in
    any case."""
    gradient_checkpointing: bool = False
    """true or false: less memory and more time, or not"""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """an integer from 0 and below 2**32"""
    checkpoint_steps: Count | None = 100
    """an integer from 1, or null: optimiser steps between checkpoints, from which a stopped training resumes. null: no
    checkpoints."""

    LORA: ClassVar = ("lora_rank", "lora_alpha", "lora_dropout")
    NOT_HASHED: ClassVar = ("checkpoint_steps", "gradient_checkpointing", "device_batch", "packing")
    """Fields without an effect on the weights, but for rounding and the random numbers that LoRA's dropout meets."""

    def __post_init__(self) -> None:
        if self.epochs is None and self.max_steps is None:
            raise ValueError("epochs and max_steps are null: give one of them")
        if self.batch % self.device_batch:
            fits = max(size for size in range(1, self.device_batch) if self.batch % size == 0)
            why = f"device_batch={self.device_batch} must divide batch={self.batch}"
            raise ValueError(f"{why}: give training.device_batch={fits}")

    def accumulation(self, processes: int) -> int:
        """Forward passes of one process in an optimiser step. Raises UserError if the batch cannot be divided so."""
        together = self.device_batch * processes
        if self.batch % together:
            raise UserError(
                f"training.batch={self.batch} cannot be divided among {processes} processes with "
                f"training.device_batch={self.device_batch}: their product must divide it"
            )
        return self.batch // together

    @property
    def hashed(self) -> dict[str, Any]:
        """The fields that have an effect on the weights."""
        left_out = {*self.NOT_HASHED, "epochs" if self.max_steps is not None else "max_steps"}
        left_out |= set(self.LORA) if self.method == "full" else set()
        return {name: value for name, value in asdict(self).items() if name not in left_out}


@dataclass(frozen=True)
class Recipe:
    """A tuning, the examples and the model to start from: the same recipe, with its steps divided alike, ends on one
    CPU with the same bytes."""

    tuning: Tuning
    examples: Examples = field(repr=False)
    kind: ClassVar = "training"
    start: str = ""
    """The identity of the model to start from (`proxytune.models.identity`); empty: not known."""

    @cached_property
    def facts(self) -> dict[str, Any]:
        data = f"sha256:{hash_of([list(example) for example in self.examples], 32)}"
        return {"tuning": self.tuning.hashed, "data": data, "start": self.start}

    @property
    def hash(self) -> str:
        return hash_of(self.facts)

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """What differs from the facts of another recipe, each as a phrase."""
        ours, theirs = self.facts["tuning"], other["tuning"]
        phrases = [
            f"training.{name} was {theirs.get(name)} and is {ours.get(name)}"
            for name in sorted((ours.keys() | theirs.keys()) - set(Tuning.NOT_HASHED))
            if ours.get(name) != theirs.get(name)
        ]
        if self.facts["data"] != other["data"]:
            phrases.append("the training examples differ")
        if self.facts["start"] != other["start"]:
            phrases.append("the model to start from differs")
        return phrases


def hash_of(facts: Any, length: int = 16) -> str:
    """The first hexadecimal digits of a hash of plain values."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:length]
