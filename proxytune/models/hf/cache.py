"""The cache of a FusedCausalLM: one KV state for each distinct member. Shapes: B rows, t new, K kept, T experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache

from proxytune.models.distinct import DistinctMembers
from proxytune.models.ensemble import Ensemble, Inputs
from proxytune.models.member import KVState


@dataclass(frozen=True)
class OwnPrompt:
    """A prompt that one member reads in place of the shared one: `tokens` and `mask` are [B, n], padded on the left."""

    tokens: Tensor
    mask: Tensor

    def expand(self, rows: int) -> OwnPrompt:
        """Each row repeated, as beams and several return sequences repeat the shared prompt."""
        times = rows // self.tokens.shape[0]
        return OwnPrompt(self.tokens.repeat_interleave(times, dim=0), self.mask.repeat_interleave(times, dim=0))

    def followed_by(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        device = tokens.device
        own, own_mask = self.tokens.to(device), self.mask.to(device)
        return torch.cat([own, tokens], dim=1), torch.cat([own_mask, mask], dim=1)


class FusedCache(Cache):
    """The members' caches as one. `layers` is their live concatenation, so that generic cache code reaches all of them.

    Roles with the same module, adapter state and prompt share one KV state.
    """

    def __init__(self, ensemble: Ensemble, roles: Sequence[str], rows: int, own: Mapping[str, OwnPrompt]) -> None:
        # Cache.__init__ would assign `layers`.
        self.layer_class_to_replicate = None
        self.offloading = False
        self.members = DistinctMembers(ensemble, roles, lambda role: role if role in own else None)
        self.states: dict[str, KVState] = {role: ensemble.start(role, rows) for role in self.members.roles}
        self.own = dict(own)
        """Own prompts that are still to be read."""
        self.length = 0
        """Positions of the shared text read so far; members with their own prompt have read others."""
        self.weights: Tensor | None = None
        """[T, B, positions]: the weights chosen at every position whose logits were returned."""

    @property
    def layers(self) -> list:  # type: ignore[override]
        return [layer for state in self.states.values() for layer in state.cache.layers]

    @property
    def is_compileable(self) -> bool:
        """False: a step of several models is not one static graph."""
        return False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def next_inputs(self, tokens: Tensor, mask: Tensor, keep: int) -> dict[str, Inputs]:
        """What every member that runs reads of `tokens` [B, t].

        In place of the first t - keep + 1 tokens, the shared prompt, a member with its own prompt reads that:

            shared      p p p p p c c      keep = 3: the logits after the last p and after each c
            own       o o o o o o o c c
        """
        inputs = {}
        prompt = tokens.shape[1] - keep + 1
        for role, state in self.states.items():
            own = self.own.pop(role, None)
            text = (tokens, mask) if own is None else own.followed_by(tokens[:, prompt:], mask[:, prompt:])
            inputs[role] = Inputs(state, *text, keep)
        self.length += tokens.shape[1]
        return inputs

    def note(self, weights: Tensor) -> None:
        """Remember the weights [T, B, K] of one step."""
        self.weights = weights if self.weights is None else torch.cat([self.weights, weights], dim=-1)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last -`tokens_to_remove` positions (a negative number, as everywhere in transformers 5)."""
        tokens = -tokens_to_remove
        self.length -= tokens
        for state in self.states.values():
            state.crop(tokens)
        if self.weights is not None:
            self.weights = self.weights[..., : self.weights.shape[-1] - tokens]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        for state in self.states.values():
            state.select(beam_idx)
        if self.weights is not None:
            self.weights = self.weights[:, beam_idx.to(self.weights.device)]

    def batch_select_indices(self, indices: Tensor) -> None:
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        rows = next(iter(self.states.values())).rows
        self.reorder_cache(torch.arange(rows).repeat_interleave(repeats))
