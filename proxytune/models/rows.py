"""Rows of unequal length in one batch: padding, new rows, and forgetting what a row has read.

Shapes: B rows, L tokens so far, t new tokens, D any.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from proxytune.models.member import KVState, Member

PAD = 0
"""Fills positions without a token; always masked, so any valid id would do."""
HOLES = 0.25
"""The fraction of columns that may be padding in the longest row before a state is compacted, which copies it."""


def pad(sequences: Sequence[Sequence[int]], left: bool) -> tuple[Tensor, Tensor | None]:
    """Token ids and mask (1 = real; None: all real), both [B, t], with the padding on the left or on the right."""
    lengths = set(map(len, sequences))
    if len(lengths) == 1:
        return torch.tensor(sequences), None
    width = max(lengths)
    ids, mask = [], []
    for sequence in sequences:
        padding, real = width - len(sequence), len(sequence)
        ids.append([PAD] * padding + [*sequence] if left else [*sequence] + [PAD] * padding)
        mask.append([0] * padding + [1] * real if left else [1] * real + [0] * padding)
    return torch.tensor(ids), torch.tensor(mask)


def joinable(state: KVState) -> bool:
    """Whether the cache holds only keys and values by position (no sliding window, no recurrent state)."""
    return all(type(layer) is DynamicLayer for layer in state.cache.layers)


def revisable(member: Member) -> bool:
    """Whether the member can forget tokens: its positions are given to it, not counted from its cache."""
    return "position_ids" in signature(member.module.forward).parameters and joinable(member.start(1))


def forget(state: KVState, tokens: Sequence[int]) -> None:
    """The last `tokens` real positions of each row become padding; trailing columns that no row needs are removed.

    read      a b c d e        row 0 forgets 1, row 1 forgets 3
    row 0     1 1 1 1 0        the last column is removed; the tokens that row 1 forgot leave a gap, which positions
    row 1     1 1 0 0 0        skip because they are counted from the mask
    """
    if state.padding is None and len(set(tokens)) == 1:
        state.crop(tokens[0])
        return
    from_here = state.mask.flip(1).cumsum(1).flip(1)
    state.mask = state.mask * (from_here > torch.tensor(tokens, device=state.mask.device)[:, None])
    unneeded = int(state.mask.any(0).flip(0).int().argmax())
    if unneeded:
        state.crop(unneeded)
    if state.length * (1 - HOLES) > state.mask.sum(dim=1).max():
        compact(state)


def compact(state: KVState) -> None:
    """Moves padding to the left of each row and removes columns that are padding in all rows."""
    if state.padding is None:
        return
    width = int(state.mask.sum(dim=1).max())
    order = state.mask.argsort(dim=1, stable=True)[:, -width:]
    state.mask = state.mask.gather(1, order)
    for layer in state.cache.layers:
        for part in ("keys", "values"):
            # A cache may be on several devices.
            places = order[:, None, :, None].to(getattr(layer, part).device)
            setattr(layer, part, getattr(layer, part).take_along_dim(places, dim=2))


def join(state: KVState, other: KVState) -> None:
    """Appends the rows of `other` to those of `state`. Columns that are padding in all rows are removed."""
    for one in (state, other):
        compact(one)
    width = max(one.length for one in (state, other))
    state.mask = torch.cat([_fit(state.mask[..., None], width), _fit(other.mask[..., None], width)])[..., 0]
    for mine, new in zip(state.cache.layers, other.cache.layers, strict=True):
        for part in ("keys", "values"):
            setattr(mine, part, torch.cat([_fit(getattr(mine, part), width), _fit(getattr(new, part), width)]))


def _fit(tensor: Tensor, width: int) -> Tensor:
    """`tensor` [..., L, D], extended to L = width by zeros on the left, where the padding is."""
    return torch.nn.functional.pad(tensor, (0, 0, width - tensor.shape[-2], 0))
