"""The KV states of the members that run. Shapes: B rows, L tokens so far, t new tokens, V vocabulary, D any."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from proxytune.engines.requests import Prompt
from proxytune.models.ensemble import Ensemble, Inputs
from proxytune.models.member import KVState
from proxytune.models.rows import forget, join, joinable, pad
from proxytune.models.static_state import StaticState, StaticStates


class KVStates:
    """One KV state for each role that runs; roles may have different numbers of rows."""

    def __init__(self, ensemble: Ensemble, static: StaticStates | None = None) -> None:
        """`static` holds the states of answers; None, or for members that do not fit: dynamic caches."""
        self.ensemble = ensemble
        self.static = static
        self.states: dict[str, KVState | StaticState] = {}

    def rows(self, role: str) -> int:
        """B: the number of rows in the role's state."""
        return self.states[role].rows if role in self.states else 0

    @property
    def joinable(self) -> bool:
        """Whether new rows can join the present ones, and positions inside a row can be forgotten."""
        return all(isinstance(state, StaticState) or joinable(state) for state in self.states.values())

    @property
    def recorded(self) -> bool:
        """Whether steps are recorded as CUDA graphs."""
        return self.static is not None and self.ensemble.device.type == "cuda"

    def prefill(self, prompts: Iterable[Prompt], roles: Sequence[str]) -> tuple[dict[str, Tensor], list[int]]:
        """Each role reads the distinct `prompts`, which become rows after the present ones.

        Returns the logits after them, [B, 1, V] by role, and the index of each prompt's row among the new rows.
        """
        different, places = _different(prompts, roles)
        new = {role: self.ensemble.start(role, len(different)) for role in roles}
        logits = self._step(new, {role: [prompt.of(role) for prompt in different] for role in new}, left=True, keep=1)
        for role, state in new.items():
            present = self.states.get(role)
            if present is None:
                self.states[role] = state if self.static is None else self.static.take(role, state)
            elif isinstance(present, StaticState):
                present.join(state)
            else:
                join(present, state)
        return logits, places

    def extend(self, rows: Mapping[str, list[int]], tokens: Mapping[str, Sequence[Sequence[int]]]) -> dict[str, Tensor]:
        """Each role keeps `rows` of its state and reads `tokens`; the states of roles that are not named are dropped.

        `tokens[role]` has one sequence for each row, of any length up to t; returns logits [B, t, V] by role,
        which are undefined at positions after the end of a sequence.
        """
        self.keep(rows)
        return self.read(tokens)

    def keep(self, rows: Mapping[str, list[int]], forgotten: Mapping[str, list[int]] | None = None) -> None:
        """Each role keeps `rows` of its state and forgets the last `forgotten[role]` tokens of each row."""
        self.states = {role: self.states[role] for role in rows}
        for role, kept in rows.items():
            state = self.states[role]
            if kept != list(range(state.rows)):
                state.select(torch.tensor(kept))
            if forgotten:
                self.forget(role, forgotten[role])

    def forget(self, role: str, tokens: Sequence[int]) -> None:
        """The role forgets the given number of last tokens of each row."""
        state = self.states[role]
        if not any(tokens):
            return
        if isinstance(state, StaticState):
            state.forget(tokens)
        else:
            forget(state, tokens)

    def read(self, tokens: Mapping[str, Sequence[Sequence[int]]]) -> dict[str, Tensor]:
        """The roles that are named read `tokens`, as in `extend`; some of their sequences, not all, may be empty."""
        return self._step({role: self.states[role] for role in tokens}, tokens, left=False)

    def _step(
        self,
        states: Mapping[str, KVState | StaticState],
        tokens: Mapping[str, Sequence[Sequence[int]]],
        left: bool,
        keep: int | None = None,
    ) -> dict[str, Tensor]:
        inputs = {}
        padded: Sequence[Sequence[int]] | None = None
        for role, state in states.items():
            if tokens[role] != padded:  # most roles read the same tokens
                padded = tokens[role]
                ids, mask = pad(padded, left)
            inputs[role] = Inputs(state, ids, mask, ids.shape[1] if keep is None else keep)
        return self.ensemble.step(inputs)


def _different(prompts: Iterable[Prompt], roles: Sequence[str]) -> tuple[list[Prompt], list[int]]:
    """The prompts that differ for some role, and the index of each given prompt among them."""
    places: dict[tuple[tuple[int, ...], ...], int] = {}
    different: list[Prompt] = []
    at = []
    for prompt in prompts:
        place = places.setdefault(tuple(prompt.of(role) for role in roles), len(different))
        if place == len(different):
            different.append(prompt)
        at.append(place)
    return different, at
