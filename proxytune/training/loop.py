"""A compact training loop for models that train in seconds: packed pretraining, and tuning on answers only.

Real models are tuned by trl's trainer (`sft.py`). This loop is for the miniature, whose models are as small as the
trainer's own work for each step: on them, `transformers.Trainer` takes 5 to 15 % more CPU time.

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from proxytune.validation import Count, FromZero, Positive, Weight, strict_dataclass

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Progress = Callable[[int, int], object]
"""Called with (steps done, steps in all)."""
IGNORED = -100
"""The label of padding."""


@strict_dataclass("optimization")
class Optimization:
    """AdamW with linear warm-up and cosine decay to `final` times the learning rate."""

    learning_rate: Positive
    """a number above 0"""
    batch: Count
    """an integer from 1: sequences (or examples) per step"""
    epochs: Positive
    """a number above 0"""
    warmup: FromZero = 0
    """an integer from 0: steps"""
    weight_decay: Weight = 0.0
    """a number from 0"""
    final: Weight = 0.05
    """a number from 0: the last learning rate is this multiple of the highest"""
    clip: Positive = 1.0
    """a number above 0: the largest norm of the gradient"""

    def steps(self, sequences: int) -> int:
        return max(1, round(self.epochs * sequences / self.batch))

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of `step` (from 0) of `steps`."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, steps - self.warmup)
        return self.learning_rate * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * done)))


@dataclass(frozen=True)
class EncodedExample:
    """Token ids of a prompt and of the answer (ending in the end-of-sequence token) that carries the loss."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


def pretrain(
    model: PreTrainedModel, stream: Tensor, window: int, how: Optimization, seed: int, progress: Progress | None = None
) -> list[float]:
    """Train on every token of `stream` [N], cut into windows. Returns the loss (nats per token) of each step."""
    count = (len(stream) - 1) // window
    inputs = stream[: count * window].view(count, window)
    labels = stream[1 : count * window + 1].view(count, window)
    rows = _shuffled(count, how, seed)
    batches = ((inputs[row], labels[row], torch.ones(labels[row].shape)) for row in rows)
    return _optimize(model, batches, how, how.steps(count), progress)


def finetune(
    model: PreTrainedModel,
    examples: Sequence[EncodedExample],
    pad: int,
    how: Optimization,
    seed: int,
    progress: Progress | None = None,
    prompt_loss: float = 0.0,
) -> list[float]:
    """Train on the answers, and on the prompts with the weight `prompt_loss`. Returns the loss (nats per answer token,
    or per weighted token) of each step."""
    rows = _shuffled(len(examples), how, seed)
    batches = (collate([examples[i] for i in row.tolist()], pad, prompt_loss) for row in rows)
    return _optimize(model, batches, how, how.steps(len(examples)), progress)


def collate(examples: Sequence[EncodedExample], pad: int, prompt_loss: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Right-padded inputs [B, T], their next-token labels [B, T] and the weights of their losses [B, T].

    ```
    prompt   p0 p1 p2   answer a0 a1
    inputs   p0 p1 p2 a0
    labels   p1 p2 a0 a1
    weights   w  w  1  1        w = prompt_loss
    ```
    """
    length = max(len(e.prompt) + len(e.answer) for e in examples) - 1
    inputs = torch.full((len(examples), length), pad)
    labels, weights = torch.full(inputs.shape, IGNORED), torch.zeros(inputs.shape)
    for row, e in enumerate(examples):
        tokens = torch.tensor([*e.prompt, *e.answer])
        start, end = len(e.prompt) - 1, len(tokens) - 1
        inputs[row, :end] = tokens[:-1]
        labels[row, :end] = tokens[1:]
        weights[row, :start], weights[row, start:end] = prompt_loss, 1.0
    return inputs, labels, weights


def _shuffled(count: int, how: Optimization, seed: int) -> Iterator[Tensor]:
    """Endless batches of row numbers: every epoch is a new permutation, and batches run across its end."""
    generator = torch.Generator().manual_seed(seed)
    queue = torch.empty(0, dtype=torch.long)
    while True:
        while len(queue) < how.batch:
            queue = torch.cat([queue, torch.randperm(count, generator=generator)])
        yield queue[: how.batch]
        queue = queue[how.batch :]


def _optimize(
    model: PreTrainedModel,
    batches: Iterator[tuple[Tensor, Tensor, Tensor]],
    how: Optimization,
    steps: int,
    progress: Progress | None,
) -> list[float]:
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=how.learning_rate, betas=(0.9, 0.98), weight_decay=how.weight_decay, fused=True
    )
    model.train()
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = how.rate(step, steps)
        inputs, labels, weights = next(batches)
        logits = model(input_ids=inputs, use_cache=False).logits
        each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
        loss = (each * weights.flatten()).sum() / weights.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), how.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if progress is not None:
            progress(step + 1, steps)
    model.eval()
    return losses
