"""The next token from an arm's logits. Shapes: n rows, V vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from proxytune.engines.requests import GenerateRequest
from proxytune.fusion.plausible import nucleus


class Noise:
    """Gumbel noise that depends only on (seed, step): arms share it, and batches and devices do not matter."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.drawn: dict[tuple[int, int], Tensor] = {}

    def of(self, seed: int, step: int) -> Tensor:
        """[V], float32, on the CPU."""
        if (seed, step) not in self.drawn:
            # numpy hashes the pair; torch's CPU generator would only use the low 32 bits of one number.
            noise = np.random.default_rng((seed, step)).gumbel(size=self.vocab_size)
            self.drawn[seed, step] = torch.from_numpy(noise).float()
        return self.drawn[seed, step]


def choose(logits: Tensor, wanted: Sequence[tuple[GenerateRequest, int]], noise: Noise) -> Tensor:
    """One token per row of `logits` [n, V], sampled as its request says: the largest score; ties go to the smallest
    id. Returns [n]."""
    return scores(logits, wanted, noise).argmax(dim=-1)


def choose_with_confidence(
    logits: Tensor, wanted: Sequence[tuple[GenerateRequest, int]], noise: Noise
) -> tuple[Tensor, Tensor]:
    """The tokens of `choose` [n] and their confidences [n]: their probabilities under the softmax of the scores, noise
    included."""
    logits = _allowed(logits, [request for request, _ in wanted])
    sampled, noisy, temperature = _noisy(logits, wanted, noise)
    confidence = logits.softmax(dim=-1).amax(dim=-1)
    if sampled:
        confidence[sampled] = (noisy * temperature[:, None]).softmax(dim=-1).amax(dim=-1)
    return _put(logits, sampled, noisy).argmax(dim=-1), confidence


def scores(logits: Tensor, wanted: Sequence[tuple[GenerateRequest, int]], noise: Noise) -> Tensor:
    """Scores [n, V]; the token with the largest score in a row is the one that its request samples at its step.

    At temperature 0 these are the logits. Otherwise the Gumbel-max trick applies: the argmax of logits / temperature +
    noise is a sample from softmax(logits / temperature).
    """
    logits = _allowed(logits, [request for request, _ in wanted])
    sampled, noisy, _ = _noisy(logits, wanted, noise)
    return _put(logits, sampled, noisy)


def _put(logits: Tensor, sampled: list[int], noisy: Tensor) -> Tensor:
    """`logits` [n, V], with the rows that are `sampled` replaced by `noisy` [m, V]."""
    return logits.index_copy(0, torch.tensor(sampled, device=logits.device), noisy) if sampled else logits


def _noisy(
    logits: Tensor, wanted: Sequence[tuple[GenerateRequest, int]], noise: Noise
) -> tuple[list[int], Tensor, Tensor]:
    """The m rows with temperature > 0, their logits / temperature + noise [m, V], and their temperatures [m]."""
    sampled = [row for row, (request, _) in enumerate(wanted) if request.temperature > 0]
    if not sampled:
        return [], logits[:0], logits[:0, 0]
    temperature = logits.new_tensor([wanted[row][0].temperature for row in sampled])
    top_p = logits.new_tensor([wanted[row][0].top_p for row in sampled])
    noises = torch.stack([noise.of(wanted[row][0].seed, wanted[row][1]) for row in sampled]).to(logits.device)
    return sampled, nucleus(logits[sampled] / temperature[:, None], top_p) + noises, temperature


def _allowed(logits: Tensor, requests: Sequence[GenerateRequest]) -> Tensor:
    """`logits` [n, V], with -inf at the tokens that a row's request bans."""
    places = [(row, token) for row, request in enumerate(requests) for token in request.banned]
    if not places:
        return logits
    rows, tokens = torch.tensor(places, device=logits.device).T
    return logits.index_put((rows, tokens), logits.new_tensor(-torch.inf))
