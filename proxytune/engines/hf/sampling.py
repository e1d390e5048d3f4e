"""The next token from an arm's logits. Shapes: n rows, V vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from proxytune.engines.requests import GenerateRequest


class Noise:
    """Gumbel noise of one step, drawn from (seed, step) alone: arms share it, and batches and devices do not matter."""

    def __init__(self, step: int, vocab_size: int) -> None:
        self.step = step
        self.vocab_size = vocab_size
        self.drawn: dict[int, Tensor] = {}

    def of(self, seed: int) -> Tensor:
        """[V], float32, on the CPU."""
        if seed not in self.drawn:
            # numpy hashes the pair; torch's CPU generator would look at the low 32 bits of one number only.
            noise = np.random.default_rng((seed, self.step)).gumbel(size=self.vocab_size)
            self.drawn[seed] = torch.from_numpy(noise).float()
        return self.drawn[seed]


def choose(logits: Tensor, requests: Sequence[GenerateRequest], noise: Noise) -> Tensor:
    """One token [n] from each row of `logits` [n, V], as its request wants it.

    Temperature 0 takes the largest logit, of equal ones the smallest id. Else the Gumbel-max trick: the largest of
    logits / temperature + noise is a sample of their softmax.
    """
    tokens = logits.argmax(dim=-1)
    sampled = [row for row, request in enumerate(requests) if request.temperature > 0]
    if sampled:
        temperature = logits.new_tensor([requests[row].temperature for row in sampled])
        top_p = logits.new_tensor([requests[row].top_p for row in sampled])
        noises = torch.stack([noise.of(requests[row].seed) for row in sampled]).to(logits.device)
        scores = nucleus(logits[sampled] / temperature[:, None], top_p)
        tokens[sampled] = (scores + noises).argmax(dim=-1)
    return tokens


def nucleus(logits: Tensor, top_p: Tensor) -> Tensor:
    """`logits` [n, V] with -inf outside the fewest likeliest tokens whose probability reaches `top_p` [n]."""
    if bool((top_p >= 1).all()):
        return logits
    probs, order = logits.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    before = probs.cumsum(dim=-1) - probs
    outside = (before >= top_p[:, None]) & (top_p < 1)[:, None]
    outside[:, 0] = False
    return logits.masked_fill(outside.scatter(-1, order, outside), -torch.inf)
