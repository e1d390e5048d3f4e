"""Which members must run, and what they have read. Shapes: B rows, t new tokens, V vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from proxytune.engines.arms import Arm
from proxytune.engines.requests import Prompt
from proxytune.models.ensemble import Ensemble, Inputs

PAD = 0
"""Stands where there is no token; always masked, so any valid id would do."""


class Voices:
    """The distinct members that `arms` need for `prompts`: roles that answer alike and read alike run once."""

    def __init__(self, ensemble: Ensemble, arms: Sequence[Arm], prompts: Iterable[Prompt]) -> None:
        self.ensemble = ensemble
        self.of: dict[str, str] = {}
        """The voice of each role: the first role with the same member and the same prompts."""
        different = {id(prompt): prompt for prompt in prompts}.values()
        for role in dict.fromkeys(role for arm in arms for role in arm.roles):
            self.of[role] = next((v for v in self.of.values() if self._alike(v, role, different)), role)
        self.names = tuple(dict.fromkeys(self.of.values()))
        self.home = ensemble[self.names[0]].device

    def _alike(self, one: str, other: str, prompts: Iterable[Prompt]) -> bool:
        same_member = self.ensemble.canonical(one) == self.ensemble.canonical(other)
        return same_member and all(prompt.of(one) == prompt.of(other) for prompt in prompts)

    def needed(self, arms: Iterable[Arm]) -> set[str]:
        return {self.of[role] for arm in arms for role in arm.roles}

    def by_role(self, arm: Arm, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`logits` by voice -> the same by the roles of `arm`."""
        return {role: logits[self.of[role]] for role in arm.roles}

    def unique(self, prompts: Iterable[Prompt]) -> tuple[list[Prompt], list[int]]:
        """The prompts that differ for some voice, and the place among them of each given prompt."""
        places: dict[tuple[tuple[int, ...], ...], int] = {}
        different: list[Prompt] = []
        at = []
        for prompt in prompts:
            place = places.setdefault(tuple(prompt.of(voice) for voice in self.names), len(different))
            if place == len(different):
                different.append(prompt)
            at.append(place)
        return different, at


class Readings:
    """What each voice has read of the rows of one group."""

    def __init__(self, voices: Voices, prompts: Sequence[Prompt]) -> None:
        """Reads each of `prompts` once per voice; `first` [B, V] by voice are the logits after them."""
        ensemble = voices.ensemble
        self.ensemble = ensemble
        self.home = voices.home
        self.size = dict.fromkeys(voices.names, len(prompts))
        self.readings = {voice: ensemble.start(voice, len(prompts)) for voice in voices.names}
        tokens = {voice: [prompt.of(voice) for prompt in prompts] for voice in voices.names}
        self.first = {voice: logits[:, -1] for voice, logits in self._step(tokens, left=True, keep=1).items()}

    def feed(self, rows: Mapping[str, list[int]], tokens: Mapping[str, Sequence[Sequence[int]]]) -> dict[str, Tensor]:
        """Each voice keeps `rows` of what it has read and reads on; voices not named are let go.

        `tokens[voice]` has one sequence for each row, of any length up to t; logits [B, t, V] by voice, where
        positions after the end of a sequence mean nothing.
        """
        self.readings = {voice: self.readings[voice] for voice in rows}
        for voice, kept in rows.items():
            if kept != list(range(self.size[voice])):
                reading = self.readings[voice]
                reading.select(torch.tensor(kept, device=reading.mask.device))
                self.size[voice] = len(kept)
        return self._step(tokens, left=False)

    def _step(
        self, tokens: Mapping[str, Sequence[Sequence[int]]], left: bool, keep: int | None = None
    ) -> dict[str, Tensor]:
        inputs = {}
        for voice, sequences in tokens.items():
            ids, mask = pad(sequences, self.ensemble[voice].device, left)
            inputs[voice] = Inputs(self.readings[voice], ids, mask, ids.shape[1] if keep is None else keep)
        return {voice: logits.to(self.home) for voice, logits in self.ensemble.step(inputs).items()}


def pad(sequences: Sequence[Sequence[int]], device: torch.device, left: bool) -> tuple[Tensor, Tensor]:
    """Token ids and mask (1 = real), both [B, t], with the padding on the left or on the right."""
    width = max(map(len, sequences))
    ids = torch.full((len(sequences), width), PAD)
    mask = torch.zeros(len(sequences), width, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        real = slice(width - len(sequence), width) if left else slice(0, len(sequence))
        ids[row, real] = torch.tensor(sequence)
        mask[row, real] = 1
    return ids.to(device), mask.to(device)
