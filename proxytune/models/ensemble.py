"""The members of a family together: the only place that runs models. It knows nothing of alpha."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from proxytune.errors import UserError
from proxytune.models.clock import Clock
from proxytune.models.facts import Members
from proxytune.models.heads import use_fast_head
from proxytune.models.member import KVState, Member
from proxytune.models.static_state import StaticState


@dataclass
class Inputs:
    """What one member reads next: `tokens` [B, t] after those in `state`. Logits are returned for the last `keep`
    tokens, or for all of them if the state is static."""

    state: KVState | StaticState
    tokens: Tensor
    mask: Tensor | None = None
    """[B, t]: 1 = real token, 0 = padding; None: all tokens are real."""
    keep: int = 1


class Ensemble(Members[Member]):
    """Loaded members by role ("base", "antiexpert", "expert:<name>", "tuned:<name>") over one vocabulary."""

    def __init__(
        self,
        members: Mapping[str, Member],
        tokenizer: PreTrainedTokenizerBase,
        end_tokens: Sequence[str] | None = None,
    ) -> None:
        """`end_tokens` end an answer; None: the end tokens of the members (`ends`)."""
        super().__init__(members, tokenizer, end_tokens)
        self.clock = Clock()
        """The time of each role's reading, under ("prompts", role) and ("answers", role)."""
        for member in self.members.values():
            if member.vocab_size != self.vocab_size:
                raise UserError(f"{member.role} has {member.vocab_size} tokens, its family has {self.vocab_size}")
            if not member.remote:
                use_fast_head(member.model)

    def start(self, role: str, rows: int) -> KVState:
        return self[role].start(rows)

    def step(self, inputs: Mapping[str, Inputs]) -> dict[str, Tensor]:
        """Each role reads its tokens; returns logits by role, [B_role, K, V], on one device. B may differ by role."""
        read = {role: self._timed(role, i) for role, i in inputs.items()}
        for one in inputs.values():
            if isinstance(one.state, StaticState):
                one.state.finish()
        if len({logits.device for logits in read.values()}) == 1:
            return read
        return {role: logits.to(self.device) for role, logits in read.items()}

    def _timed(self, role: str, inputs: Inputs) -> Tensor:
        state = inputs.state
        what = "answers" if isinstance(state, StaticState) or state.length else "prompts"
        with self.clock.time((what, role), state.device):
            if isinstance(state, StaticState):
                return state.read(inputs.tokens, inputs.mask)
            return self[role].read(state, inputs.tokens, inputs.mask, inputs.keep)

    @property
    def device(self) -> torch.device:
        """The device of all logits: that of the first member that is not behind an endpoint."""
        return next((member.device for member in self.members.values() if not member.remote), torch.device("cpu"))
