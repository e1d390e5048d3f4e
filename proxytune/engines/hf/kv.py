"""What the voices have read, row by row. Shapes: B rows, L read, t new tokens, V vocabulary, D any."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from proxytune.engines.requests import Prompt
from proxytune.models.ensemble import Ensemble, Inputs
from proxytune.models.member import Reading

PAD = 0
"""Stands where there is no token; always masked, so any valid id would do."""


class Readings:
    """What each voice has read of its rows."""

    def __init__(self, ensemble: Ensemble) -> None:
        self.ensemble = ensemble
        self.readings: dict[str, Reading] = {}

    def rows(self, voice: str) -> int:
        """B: how many rows the voice has read."""
        return len(self.readings[voice].mask) if voice in self.readings else 0

    @property
    def joinable(self) -> bool:
        """Whether new rows may join the present ones."""
        return all(map(joinable, self.readings.values()))

    def start(self, prompts: Sequence[Prompt], voices: Iterable[str]) -> dict[str, Tensor]:
        """`voices` read `prompts`, which become rows after the present ones; logits after them, [B, 1, V] by voice."""
        new = {voice: self.ensemble.start(voice, len(prompts)) for voice in voices}
        logits = self._step(new, {voice: [prompt.of(voice) for prompt in prompts] for voice in new}, left=True, keep=1)
        for voice, reading in new.items():
            if voice in self.readings:
                join(self.readings[voice], reading)
            else:
                self.readings[voice] = reading
        return logits

    def feed(self, rows: Mapping[str, list[int]], tokens: Mapping[str, Sequence[Sequence[int]]]) -> dict[str, Tensor]:
        """Each voice keeps `rows` of what it has read and reads on; voices not named are let go.

        `tokens[voice]` has one sequence for each row, of any length up to t; logits [B, t, V] by voice, where
        positions after the end of a sequence mean nothing.
        """
        self.readings = {voice: self.readings[voice] for voice in rows}
        for voice, kept in rows.items():
            if kept != list(range(self.rows(voice))):
                self.readings[voice].select(torch.tensor(kept))
        return self._step(self.readings, tokens, left=False)

    def _step(
        self,
        readings: Mapping[str, Reading],
        tokens: Mapping[str, Sequence[Sequence[int]]],
        left: bool,
        keep: int | None = None,
    ) -> dict[str, Tensor]:
        inputs = {}
        for voice, reading in readings.items():
            ids, mask = pad(tokens[voice], left)
            inputs[voice] = Inputs(reading, ids, mask, ids.shape[1] if keep is None else keep)
        return self.ensemble.step(inputs)


def pad(sequences: Sequence[Sequence[int]], left: bool) -> tuple[Tensor, Tensor]:
    """Token ids and mask (1 = real), both [B, t], with the padding on the left or on the right."""
    width = max(map(len, sequences))
    ids = torch.full((len(sequences), width), PAD)
    mask = torch.zeros(len(sequences), width, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        real = slice(width - len(sequence), width) if left else slice(0, len(sequence))
        ids[row, real] = torch.tensor(sequence)
        mask[row, real] = 1
    return ids, mask


def joinable(reading: Reading) -> bool:
    """Whether the cache is keys and values by position and nothing else (no sliding window, no recurrent state)."""
    return all(type(layer) is DynamicLayer for layer in reading.cache.layers)


def join(reading: Reading, other: Reading) -> None:
    """The rows of `other` become rows of `reading`, after its own. Columns that are padding in all rows go."""
    width = max(int(mask.sum(dim=1).max()) for mask in (reading.mask, other.mask))
    reading.mask = torch.cat([_fit(reading.mask[..., None], width), _fit(other.mask[..., None], width)])[..., 0]
    for mine, new in zip(reading.cache.layers, other.cache.layers, strict=True):
        for part in ("keys", "values"):
            setattr(mine, part, torch.cat([_fit(getattr(mine, part), width), _fit(getattr(new, part), width)]))


def _fit(tensor: Tensor, width: int) -> Tensor:
    """`tensor` [..., L, D] with L = width: columns are cut or zeros added on the left, where the padding is."""
    return torch.nn.functional.pad(tensor, (0, 0, max(0, width - tensor.shape[-2]), 0))[..., -width:, :]
