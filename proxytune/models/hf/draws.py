"""The random numbers by which transformers samples, for steps that are tried before their turn. B rows, V tokens."""

from __future__ import annotations

import torch
from torch import Tensor


class Draws:
    """What `torch.multinomial` draws at each step for a batch: it takes the largest of probability / draw."""

    def __init__(self, rows: int, vocab_size: int, device: torch.device) -> None:
        self.shape = (rows, vocab_size)
        self.device = device
        self._drawn: list[Tensor] = []
        self._states = [self._state()]
        """Of the generator, before each step."""

    def of(self, step: int) -> Tensor:
        """[B, V], drawn in the order of the steps."""
        while len(self._drawn) <= step:
            self._drawn.append(torch.empty(self.shape, device=self.device).exponential_())
            self._states.append(self._state())
        return self._drawn[step]

    def rewind(self, steps: int) -> None:
        """Leaves the generator as after so many steps."""
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(self._states[steps], self.device)
        else:
            torch.set_rng_state(self._states[steps])

    def _state(self) -> Tensor:
        return torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else torch.get_rng_state()
