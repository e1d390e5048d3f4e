"""The members of a family together: the one place that runs models. No alpha here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from proxytune.errors import UserError, unknown_name
from proxytune.models.member import KVState, Member
from proxytune.models.vocabulary import token_numbers, vocabulary_size


@dataclass
class Inputs:
    """What one member is to read next: `tokens` [B, t] on top of `state`; logits come back for the last `keep`."""

    state: KVState
    tokens: Tensor
    mask: Tensor | None = None
    """[B, t]: 1 = real token, 0 = padding; None: all real."""
    keep: int = 1


class Ensemble:
    """Members by role ("base", "antiexpert", "expert:<name>", "tuned:<name>") over one vocabulary."""

    def __init__(
        self,
        members: Mapping[str, Member],
        tokenizer: PreTrainedTokenizerBase,
        end_tokens: Sequence[str] | None = None,
    ) -> None:
        """`end_tokens` are what ends an answer; None: whatever ends it for a member (`ends`)."""
        self.members = dict(members)
        self.tokenizer = tokenizer
        self.vocab_size = vocabulary_size(tokenizer)
        for member in self.members.values():
            if member.vocab_size != self.vocab_size:
                raise UserError(f"{member.role} has {member.vocab_size} tokens, its family has {self.vocab_size}")
        self.end_tokens = end_tokens

    def __getitem__(self, role: str) -> Member:
        if role not in self.members:
            raise unknown_name("role", role, self.members)
        return self.members[role]

    def ends(self, roles: Iterable[str]) -> tuple[int, ...]:
        """The tokens that end an answer of `roles`, ascending: those given to the family, or else the union of what the
        family's tokenizer, the members' own and their generation configs name.

        A chat expert may end its turn with a token that only its own generation config lists (`<|eot_id|>`,
        `<|im_end|>`): the fused answer ends there too, as it does where the expert answers alone.
        """
        if self.end_tokens is not None:
            return token_numbers(self.tokenizer, self.end_tokens)
        found = {self.tokenizer.eos_token_id}
        for member in (self[role] for role in roles):
            config = getattr(member.model, "generation_config", None)
            listed = getattr(config, "eos_token_id", None)
            found |= set(listed if isinstance(listed, list) else [listed])
            found |= {member.tokenizer.eos_token_id} if member.tokenizer is not None else set()
        return tuple(sorted(token for token in found if token is not None and token < self.vocab_size))

    def start(self, role: str, rows: int) -> KVState:
        return self[role].start(rows)

    def step(self, inputs: Mapping[str, Inputs]) -> dict[str, Tensor]:
        """Every role reads its tokens; logits by role, each [B_role, K, V], on one device. Rows may differ by role."""
        read = {role: self[role].read(i.state, i.tokens, i.mask, i.keep) for role, i in inputs.items()}
        return {role: logits.to(self.device) for role, logits in read.items()}

    @property
    def device(self) -> torch.device:
        """Where logits meet: the device of the first member."""
        return next(iter(self.members.values())).device
