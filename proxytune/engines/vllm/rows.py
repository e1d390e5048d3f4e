"""Which request each row of hidden states belongs to, carried in columns of the hidden states themselves.

vLLM picks rows of the hidden states (the last of each request, those of a prompt to be scored, drafts) and has the
model turn them into logits, without saying whose they are. Columns appended to the hidden states follow the rows
wherever they go. They are digits in base 256, which bfloat16 holds exactly. Shapes: n rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from proxytune.engines.hf.sampling import Noise, scores
from proxytune.engines.vllm.settings import Asked
from proxytune.fusion.arm import Arm
from proxytune.fusion.rule import Fused

_BASE = 256
_SLOT, _POSITION = 2, 3
COLUMNS = _SLOT + _POSITION
"""Columns for the slot + 1 of the row's request (0: of none), and for the position of its token."""


class Group(NamedTuple):
    """The rows that one arm answers."""

    arm: Arm
    rows: list[int]


class Rows:
    """The requests that run, by their slot in vLLM's batch, and the weights kept for them."""

    def __init__(self, nobody: Arm) -> None:
        """`nobody` answers the rows that belong to no request: those of dry runs."""
        self.nobody = Asked(nobody)
        self.asked: dict[int, Asked] = {}
        self.kept: dict[str, dict[int, list[float] | None]] = {}
        """By name and position of a token: the weights [T] of the logits after it; None where these are undefined."""

    def groups(self, columns: Tensor) -> tuple[list[Group], list[tuple[Asked, int]]]:
        """The rows [n, COLUMNS] by arm, and what each row's request asked for with the row's position."""
        slots = _number(columns[:, :_SLOT]).tolist()
        positions = _number(columns[:, _SLOT:]).tolist()
        whose = list(zip((self.asked.get(slot - 1, self.nobody) for slot in slots), positions, strict=True))
        rows: dict[Arm, list[int]] = {}
        for row, (asked, _) in enumerate(whose):
            rows.setdefault(asked.arm, []).append(row)
        return [Group(arm, found) for arm, found in rows.items()], whose

    def keep(self, rows: Sequence[tuple[Asked, int]], fused: Fused) -> None:
        """Keeps the weights of those of `rows` whose requests want it."""
        wanted = [(row, asked.keep, position) for row, (asked, position) in enumerate(rows) if asked.keep is not None]
        if not wanted:
            return
        finite = fused.logits.amax(dim=-1).isfinite().tolist()
        weights = fused.weights.T.tolist() if len(fused.weights) else [[]] * len(rows)
        for row, name, position in wanted:
            self.kept.setdefault(name, {})[position] = weights[row] if finite[row] else None

    def drawn(self, rows: Sequence[tuple[Asked, int]], logits: Tensor) -> Tensor:
        """`logits` [n, V] of `rows`, so that the largest is the token to take where vLLM is not to draw it."""
        wanted = {
            row: (asked.sampling, position + 1 - asked.start)
            for row, (asked, position) in enumerate(rows)
            if asked.sampling is not None and position + 1 >= asked.start  # not in the middle of a prompt
        }
        if not wanted:
            return logits
        mine = torch.tensor(list(wanted), device=logits.device)
        return logits.index_copy(0, mine, scores(logits[mine], list(wanted.values()), Noise(logits.shape[-1])))

    def take(self) -> dict[str, dict[int, list[float] | None]]:
        """What was kept since the last call."""
        kept, self.kept = self.kept, {}
        return kept


def columns(slots: Tensor, positions: Tensor) -> Tensor:
    """[n, COLUMNS], float32, from the slots (-1: none) and positions [n] of the rows."""
    digits = [*_digits(slots + 1, _SLOT), *_digits(positions, _POSITION)]
    return torch.stack(digits, dim=-1).float()


def _digits(numbers: Tensor, count: int) -> list[Tensor]:
    return [numbers // _BASE**i % _BASE for i in range(count)]


def _number(digits: Tensor) -> Tensor:
    """[n] from [n, digits]; anything for what are no digits, as in dry runs."""
    digits = digits.float().nan_to_num(0.0).round().long()
    return (digits * digits.new_tensor([_BASE**i for i in range(digits.shape[-1])])).sum(dim=-1)
