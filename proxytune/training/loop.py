"""Prompts and answers as weighted tokens, and a compact training loop for models that train in seconds.

Real models are tuned by trl's trainer (`sft.py`). The loop is for the miniature: transformers' Trainer gives the same
weights to the bit, with more code (docs/LOG.md).

Shapes: B rows, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice, repeat
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from proxytune.models.vocabulary import token_ids
from proxytune.validation import Count, FromZero, NonNegative, Positive, strict_dataclass

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OnStep = Callable[[int, int], object]
"""Called with (steps done, steps in all)."""


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
    weight_decay: NonNegative = 0.0
    """a number from 0"""
    final: NonNegative = 0.05
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


class WeightedTokens(NamedTuple):
    """Tokens [T], and the weight of the loss on each [T]; the first token is only read."""

    tokens: Tensor
    weights: Tensor


def weigh(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str, prompt_loss: float) -> WeightedTokens:
    """Ends with the end-of-sequence token. A token weighs 1 in the answer and `prompt_loss` in the prompt."""
    # Tokenised together, as lm-eval tokenises a context with its continuation, so that the boundary is the same.
    tokens = torch.tensor([*token_ids(tokenizer, prompt + answer), tokenizer.eos_token_id])
    weights = torch.ones(len(tokens))
    weights[: len(token_ids(tokenizer, prompt))] = prompt_loss
    return WeightedTokens(tokens, weights)


def windows(stream: Tensor, width: int) -> list[WeightedTokens]:
    """Rows in which every token of `stream` [N] is learned once, `width` tokens in each; what is left over is not."""
    return [WeightedTokens(tokens, torch.ones(len(tokens))) for tokens in stream.unfold(0, width + 1, width)]


def train(
    model: nn.Module,
    rows: Sequence[WeightedTokens],
    how: Optimization,
    seed: int,
    progress: OnStep = lambda *_: None,
) -> list[float]:
    """Trains on `rows` in random order. Returns the loss of each step, in nats per weighted token."""
    steps = how.steps(len(rows))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=how.learning_rate, betas=(0.9, 0.98), weight_decay=how.weight_decay, fused=True
    )
    model.train()
    losses = []
    for step, batch in zip(range(steps), _batches(len(rows), how.batch, seed), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = how.rate(step, steps)
        loss = _loss(model, [rows[i] for i in batch])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), how.clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        progress(step + 1, steps)
    model.eval()
    return losses


def _batches(count: int, batch: int, seed: int) -> Iterator[list[int]]:
    """Endless batches of row numbers: every epoch is a new permutation, and batches run across its end."""
    random = torch.Generator().manual_seed(seed)
    order = chain.from_iterable(torch.randperm(count, generator=random).tolist() for _ in repeat(None))
    while True:
        yield list(islice(order, batch))


def _loss(model: nn.Module, rows: Sequence[WeightedTokens]) -> Tensor:
    """The weighted mean of the tokens' losses. Padding stands on the right, where no other token sees it."""
    tokens, weights = (pad_sequence(list(part), batch_first=True) for part in zip(*rows, strict=True))  # [B, T]
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    losses = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    weights = weights[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()
