"""The base behind an endpoint, as a member of a family. Shapes: B rows, L read, t new, K kept, V tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig, PreTrainedTokenizerBase

from proxytune.errors import UserError
from proxytune.models.api.client import Client, NamedTokens, SentPrompt
from proxytune.models.api.endpoint import Endpoint
from proxytune.models.api.tokens import Letters, SameTokens
from proxytune.models.facts import ends_of
from proxytune.models.member import KVState
from proxytune.models.vocabulary import BROKEN, token_ids, vocabulary_size

Spot = tuple[int, int, SentPrompt]
"""A row, one of its kept positions, and everything before the requested token."""


@dataclass(frozen=True)
class ApiFacts:
    """What is known of the member before its endpoint is asked anything; fields are those of `MemberFacts`."""

    role: str
    endpoint: Endpoint
    tokenizer: PreTrainedTokenizerBase
    """The family's."""

    remote: ClassVar[bool] = True
    dtype: ClassVar[torch.dtype] = torch.float32
    """Of the logits that are made of its answers."""
    render: ClassVar[None] = None
    missing: ClassVar[tuple[int, ...]] = ()
    unknown: ClassVar[int] = 0
    ignored: ClassVar[Mapping[str, Any]] = {}

    @property
    def identity(self) -> str:
        return self.endpoint.identity

    @property
    def window(self) -> int | None:
        return self.endpoint.window

    @property
    def ends(self) -> frozenset[int]:
        return ends_of(None, self.tokenizer)

    @property
    def config(self) -> PreTrainedConfig:
        """Nothing is known of it; lm-eval wants one."""
        return PreTrainedConfig()


@dataclass(frozen=True)
class ApiMember(ApiFacts):
    """A model that only returns its `top_logprobs` likeliest tokens; all others have the logit -inf.

    The logits of those are the endpoint's log-probabilities, so that a fused row is one over these tokens alone.
    With the family's own tokenizer (`Endpoint.tokenizer`) tokens are sent and found again by their ids. With another
    one the prompt is sent as text, and single letters alone are found: enough for choices that are letters, as in Liu
    et al. 2024 (arXiv 2401.08565), section 7.
    """

    client: Client = field(kw_only=True)
    model: torch.nn.Module = field(default_factory=torch.nn.Module, kw_only=True)
    """Stands where other members have theirs: without weights."""

    @property
    def module(self) -> torch.nn.Module:
        return self.model

    @property
    def adapter(self) -> None:
        return None

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def vocab_size(self) -> int:
        return vocabulary_size(self.tokenizer)

    def start(self, rows: int) -> KVState:
        """An empty state for a batch of rows."""
        return KVState(DynamicCache(), rows)

    def read(self, state: KVState, tokens: Tensor, mask: Tensor | None = None, keep: int = 1) -> Tensor:
        """Read `tokens` [B, t] (`mask` [B, t]: 1 = real); the logits after the last `keep` positions, [B, K, V].

        Positions that are padding have -inf everywhere. Raises UserError as `Client` and the mapping of tokens do, and
        for more than a prompt where the endpoint's tokenizer is not known.
        """
        if not self.endpoint.tokenizer and state.length > 0:
            raise UserError(
                f"{self.client.what} has another tokenizer than the family, so only single-letter choices can be "
                "scored: give models.base.tokenizer, or another task"
            )
        state.extend(tokens.shape[1], mask)
        # Tokens stand where other members keep keys and values, so that engines move rows as they do for these.
        shaped = tokens[:, None, :, None]
        state.cache.update(shaped, shaped, 0)
        read: Any = state.cache.layers[0]
        spots = self._spots(read.keys[:, 0, :, 0], state.mask, keep)
        logits = torch.full((len(tokens), keep, self.vocab_size), -torch.inf)
        found = self.client.each(lambda spot: self.client.next_tokens(spot[2]), spots)
        for (row, position, _), top in zip(spots, found, strict=True):
            logits[row, position] = self._logits(top)
        return logits

    def _spots(self, read_BL: Tensor, mask_BL: Tensor, keep: int) -> list[Spot]:
        width = read_BL.shape[1]
        return [
            (row, position, self.prompt(read_BL[row, :end][mask_BL[row, :end] == 1].tolist()))
            for row in range(len(read_BL))
            for position, end in enumerate(range(width - keep + 1, width + 1))
            if mask_BL[row, end - 1]
        ]

    def prompt(self, tokens: list[int]) -> SentPrompt:
        """What the endpoint is to read for the family's `tokens`."""
        if self.endpoint.tokenizer:
            return tuple(tokens)
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _logits(self, top: NamedTokens | None) -> Tensor:
        """[V]: of what the endpoint gives; of tokens that it writes in several ways the likeliest."""
        logits = torch.full((self.vocab_size,), -torch.inf)
        for token, logprob in top if top is not None else self._end:
            for i in self.mapping.ids(token):
                logits[i] = max(logits[i].item(), logprob)
        return logits

    @cached_property
    def mapping(self) -> SameTokens | Letters:
        """From the endpoint's tokens to the family's."""
        known = self.endpoint.tokenizer is not None
        return SameTokens(self.tokenizer, self.client.what) if known else Letters(self.tokenizer)

    @property
    def _end(self) -> NamedTokens:
        """Where the endpoint ends a text and gives no probabilities, the end is its only token."""
        return [(f"token_id:{self.tokenizer.eos_token_id}", 0.0)]


def connect(facts: ApiFacts) -> ApiMember:
    """The member, once its endpoint has answered a first request.

    Raises UserError as `Client` does, for fewer tokens than `top_logprobs`, and for tokens of another tokenizer.
    """
    member = ApiMember(**vars(facts), client=Client(facts.endpoint))
    wanted = min(facts.endpoint.top_logprobs, member.vocab_size)
    top = member.client.next_tokens(member.prompt(token_ids(facts.tokenizer, "The answer is")))
    broken = any(BROKEN in token for token, _ in top or ())  # pieces of characters are written alike: one entry for all
    if top is not None and len(top) < wanted and not broken:
        raise UserError(
            f"{member.client.what} gives {len(top)} log-probabilities of the {wanted} asked for: "
            f"set models.base.top_logprobs={len(top)}"
        )
    for token, _ in top or ():
        member.mapping.ids(token)
    return member
