"""What decides the weights that a training ends with, and how two of them differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from proxytune.errors import UserError


@dataclass(frozen=True)
class Tuning:
    """How a model is tuned; the defaults are the LoRA recipe of Liu et al. 2024 (arXiv 2401.08565)."""

    method: str = "lora"
    """"lora" writes an adapter over the model; "full" writes a whole model."""
    epochs: float | None = 2.0
    """Passes over the examples; has no effect when `max_steps` is set, which is said."""
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
    packing: bool = False
    """The examples of a forward pass stand in one row, out of sight of each other, instead of in rows with padding."""
    bf16: bool = False
    """Products are calculated in bfloat16; what is trained, and Adam's moments, are float32 in any case."""
    gradient_checkpointing: bool = False
    seed: int = 0
    checkpoint_steps: int | None = 100
    """Optimiser steps between two checkpoints, from which a training that was stopped goes on; None: no checkpoints."""

    LORA: ClassVar = ("lora_rank", "lora_alpha", "lora_dropout")
    IDLE: ClassVar = ("checkpoint_steps", "gradient_checkpointing", "device_batch", "packing")

    def __post_init__(self) -> None:
        if self.method not in ("lora", "full"):
            raise ValueError(f"training.method is {self.method!r}; allowed: lora, full")
        for name, needed, allowed in self._ranges():
            if not allowed:
                raise ValueError(f"training.{name} is {getattr(self, name)}; it is {needed}")
        if self.epochs is None and self.max_steps is None:
            raise ValueError("training.epochs and training.max_steps are null: give one of them")
        if self.batch % self.device_batch:
            raise ValueError(
                f"training.device_batch is {self.device_batch}; it must divide training.batch ({self.batch})"
            )

    def _ranges(self) -> Iterator[tuple[str, str, bool]]:
        """(field, what it may be, whether it is); comparisons are such that NaN is refused."""
        infinite = float("inf")
        for name in ("batch", "device_batch", "max_length", "lora_rank", "lora_alpha"):
            yield name, "an integer from 1", self._is(int, name) and getattr(self, name) >= 1
        for name in ("max_steps", "checkpoint_steps"):
            value = getattr(self, name)
            yield name, "an integer from 1, or null", value is None or (self._is(int, name) and value >= 1)
        yield "seed", "an integer from 0 and below 2**32", self._is(int, "seed") and 0 <= self.seed < 2**32
        for name in ("epochs", "learning_rate"):
            value = getattr(self, name)
            allowed = (name == "epochs" and value is None) or (self._is(float, name) and 0 < value < infinite)
            yield name, "a number above 0, finite", allowed
        for name in ("weight_decay", "prompt_loss"):
            yield name, "a weight from 0, finite", self._is(float, name) and 0 <= getattr(self, name) < infinite
        for name in ("warmup_ratio", "lora_dropout"):
            yield name, "a share from 0 and below 1", self._is(float, name) and 0 <= getattr(self, name) < 1
        for name in ("packing", "bf16", "gradient_checkpointing"):
            yield name, "true or false", self._is(bool, name)

    def _is(self, kind: type, name: str) -> bool:
        """Whether the field is of this type: the text "no" would count as true, and true as 1. Integers are floats."""
        return type(getattr(self, name)) in {kind, int if kind is float else kind}

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
    def decisive(self) -> dict[str, Any]:
        """The fields that have an effect on the weights. What a step is divided into has none but by rounding, and by
        which random numbers LoRA's dropout meets."""
        idle = set(self.IDLE)
        idle |= set(self.LORA) if self.method == "full" else set()
        idle |= {"max_steps"} if self.max_steps is None else {"epochs"}
        return {name: value for name, value in asdict(self).items() if name not in idle}


@dataclass(frozen=True)
class Recipe:
    """A tuning, the examples and the model to start from: the same recipe, with its steps divided alike, ends on one
    CPU with the same bytes."""

    tuning: Tuning
    examples: Sequence[tuple[str, str]] = field(repr=False)
    """(prompt, answer)."""
    kind: ClassVar = "training"
    start: str = ""
    """The identity of the model to start from (`proxytune.models.loading.identity.identity`); empty: not known."""

    @cached_property
    def facts(self) -> dict[str, Any]:
        data = f"sha256:{hash_of([list(example) for example in self.examples], 32)}"
        return {"tuning": self.tuning.decisive, "data": data, "start": self.start}

    @property
    def hash(self) -> str:
        return hash_of(self.facts)

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """What differs from the facts of another recipe, each as a phrase."""
        ours, theirs = self.facts["tuning"], other["tuning"]
        said = [
            f"training.{name} was {theirs.get(name)} and is {ours.get(name)}"
            for name in sorted((ours.keys() | theirs.keys()) - set(Tuning.IDLE))
            if ours.get(name) != theirs.get(name)
        ]
        for name, words in (("data", "the training examples differ"), ("start", "the model to start from differs")):
            if self.facts[name] != other[name]:
                said.append(words)
        return said


def hash_of(facts: Any, length: int = 16) -> str:
    """The first hexadecimal digits of a hash of plain values."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:length]
