"""The KV states of the members that run. Shapes: B rows, L tokens so far, t new tokens, V vocabulary, D any."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from inspect import signature

import torch
from peft import PeftModel
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from proxytune.engines.requests import Prompt
from proxytune.models.ensemble import Ensemble, Inputs
from proxytune.models.member import KVState, Member

PAD = 0
"""Stands where there is no token; always masked, so any valid id would do."""
HOLES = 0.25
"""The share of columns that padding may take in the longest row before a state is compacted, which copies it."""


class KVStates:
    """One KV state for each role that runs; roles may have different numbers of rows."""

    def __init__(self, ensemble: Ensemble) -> None:
        self.ensemble = ensemble
        self.states: dict[str, KVState] = {}

    def rows(self, role: str) -> int:
        """B: the rows of the role's state."""
        return len(self.states[role].mask) if role in self.states else 0

    @property
    def joinable(self) -> bool:
        """Whether new rows may join the present ones, and positions in the middle of a row be forgotten."""
        return all(map(joinable, self.states.values()))

    def prefill(self, prompts: Iterable[Prompt], roles: Sequence[str]) -> tuple[dict[str, Tensor], list[int]]:
        """Each role reads the different ones of `prompts`, which become rows after the present ones.

        Returns the logits after them, [B, 1, V] by role, and the place among the new rows of each given prompt.
        """
        different, places = _different(prompts, roles)
        new = {role: self.ensemble.start(role, len(different)) for role in roles}
        logits = self._step(new, {role: [prompt.of(role) for prompt in different] for role in new}, left=True, keep=1)
        for role, state in new.items():
            if role in self.states:
                join(self.states[role], state)
            else:
                self.states[role] = state
        return logits, places

    def extend(self, rows: Mapping[str, list[int]], tokens: Mapping[str, Sequence[Sequence[int]]]) -> dict[str, Tensor]:
        """Each role keeps `rows` of its state and reads on; the states of roles that are not named are dropped.

        `tokens[role]` has one sequence for each row, of any length up to t; logits [B, t, V] by role, where
        positions after the end of a sequence mean nothing.
        """
        self.keep(rows)
        return self.read(tokens)

    def keep(self, rows: Mapping[str, list[int]], forgotten: Mapping[str, list[int]] | None = None) -> None:
        """Each role keeps `rows` of its state; of each, the last `forgotten[role]` tokens count as never read."""
        self.states = {role: self.states[role] for role in rows}
        for role, kept in rows.items():
            if kept != list(range(self.rows(role))):
                self.states[role].select(torch.tensor(kept))
            if forgotten and any(forgotten[role]):
                forget(self.states[role], forgotten[role])

    def read(self, tokens: Mapping[str, Sequence[Sequence[int]]]) -> dict[str, Tensor]:
        """The roles that are named read on, as `extend` says; some of their sequences, not all, may be empty."""
        return self._step({role: self.states[role] for role in tokens}, tokens, left=False)

    def _step(
        self,
        states: Mapping[str, KVState],
        tokens: Mapping[str, Sequence[Sequence[int]]],
        left: bool,
        keep: int | None = None,
    ) -> dict[str, Tensor]:
        inputs = {}
        for role, state in states.items():
            ids, mask = pad(tokens[role], left)
            inputs[role] = Inputs(state, ids, mask, ids.shape[1] if keep is None else keep)
        return self.ensemble.step(inputs)


def _different(prompts: Iterable[Prompt], roles: Sequence[str]) -> tuple[list[Prompt], list[int]]:
    """The prompts that differ for some role, and the place among them of each given prompt."""
    places: dict[tuple[tuple[int, ...], ...], int] = {}
    different: list[Prompt] = []
    at = []
    for prompt in prompts:
        place = places.setdefault(tuple(prompt.of(role) for role in roles), len(different))
        if place == len(different):
            different.append(prompt)
        at.append(place)
    return different, at


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


def joinable(state: KVState) -> bool:
    """Whether the cache is keys and values by position and nothing else (no sliding window, no recurrent state)."""
    return all(type(layer) is DynamicLayer for layer in state.cache.layers)


def revisable(member: Member) -> bool:
    """Whether what the member has read may be forgotten again: positions are given to it, not counted in its cache."""
    plain = member.model.get_base_model() if isinstance(member.model, PeftModel) else member.model
    return "position_ids" in signature(plain.forward).parameters and joinable(member.start(1))


def forget(state: KVState, tokens: Sequence[int]) -> None:
    """Of each row the last `tokens` real positions become padding; columns at the end that no row needs go.

    read      a b c d e        row 0 forgets 1, row 1 forgets 3
    row 0     1 1 1 1 0        the last column goes; what row 1 has forgotten is a hole, and positions,
    row 1     1 1 0 0 0        which are counted from the mask, leave it out
    """
    from_here = state.mask.flip(1).cumsum(1).flip(1)
    state.mask = state.mask * (from_here > torch.tensor(tokens, device=state.mask.device)[:, None])
    unneeded = int(state.mask.any(0).flip(0).int().argmax())
    if unneeded:
        state.crop(unneeded)
    if state.mask.shape[1] * (1 - HOLES) > state.mask.sum(dim=1).max():
        compact(state)


def compact(state: KVState) -> None:
    """Padding moves to the left of each row, and columns that are padding in all rows go."""
    width = int(state.mask.sum(dim=1).max())
    order = state.mask.argsort(dim=1, stable=True)[:, -width:]
    state.mask = state.mask.gather(1, order)
    for layer in state.cache.layers:
        for part in ("keys", "values"):
            # A cache may be on several devices.
            places = order[:, None, :, None].to(getattr(layer, part).device)
            setattr(layer, part, getattr(layer, part).take_along_dim(places, dim=2))


def join(state: KVState, other: KVState) -> None:
    """The rows of `other` become rows of `state`, after its own. Columns that are padding in all rows go."""
    for one in (state, other):
        compact(one)
    width = max(one.mask.shape[1] for one in (state, other))
    state.mask = torch.cat([_fit(state.mask[..., None], width), _fit(other.mask[..., None], width)])[..., 0]
    for mine, new in zip(state.cache.layers, other.cache.layers, strict=True):
        for part in ("keys", "values"):
            setattr(mine, part, torch.cat([_fit(getattr(mine, part), width), _fit(getattr(new, part), width)]))


def _fit(tensor: Tensor, width: int) -> Tensor:
    """`tensor` [..., L, D] with L = width: zeros are added on the left, where the padding is."""
    return torch.nn.functional.pad(tensor, (0, 0, width - tensor.shape[-2], 0))
