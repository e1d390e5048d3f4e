"""Requests to an engine and its answers. Tokens are ids of the shared vocabulary."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from proxytune.errors import UserError


@dataclass(frozen=True)
class Prompt:
    """The tokens before the answer; `own` holds the roles that read their own prompt (such as a chat expert)."""

    tokens: tuple[int, ...]
    own: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def of(self, role: str) -> tuple[int, ...]:
        return self.own.get(role, self.tokens)


@dataclass(frozen=True)
class ScoreRequest:
    """Asks for the probability of `continuation` after `prompt`."""

    prompt: Prompt
    continuation: tuple[int, ...]


TraceLevel = Literal["none", "summary", "full"]
TopTokens = tuple[tuple[int, float], ...]
"""The likeliest tokens and their probabilities, the largest first."""


@dataclass(frozen=True)
class GenerateRequest:
    """Continue `prompt` until a stop string, the end-of-sequence token or `max_new_tokens`."""

    prompt: Prompt
    max_new_tokens: int
    until: tuple[str, ...] = ()
    """Stop strings: the answer's text ends before the first of them."""
    temperature: float = 0.0
    """0 is greedy decoding; ties go to the smallest token id."""
    top_p: float = 1.0
    banned: tuple[int, ...] = ()
    """Tokens that an answer never contains."""
    seed: int = 0
    """Noise depends only on (seed, step), so the arms of a request share it, and batches do not matter."""
    trace: TraceLevel = "none"
    """What to record for each token in addition to the answer; it changes no answer. An engine may record nothing."""
    drafts: tuple[tuple[int, ...], ...] = ()
    """Tokens of answers that may resemble this one. An engine may use them to be faster; no answer depends on them."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 0:
            raise UserError(f"max_new_tokens = {self.max_new_tokens}: give a number of tokens >= 0")
        if "" in self.until:
            raise UserError("until: an empty stop string would end every answer at once; leave it out")
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature = {self.temperature}: give 0 (greedy) or a positive number")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p = {self.top_p}: give a number above 0 and at most 1 (no filter)")
        if self.seed < 0:
            raise UserError(f"seed = {self.seed}: give an integer >= 0")


@dataclass(frozen=True)
class Scored:
    """One arm's answer to a ScoreRequest with n continuation tokens."""

    logprobs: tuple[float, ...]
    """[n] natural-log probabilities."""
    greedy: tuple[bool, ...]
    """[n] whether each token is the arm's most likely token."""
    weights: tuple[tuple[float, ...], ...]
    """[T][n] the weight of each expert at each token; empty for a single model."""

    def undefined(self, may_rule_out: bool) -> str | None:
        """Why this is not a valid answer (a log-probability is NaN or infinite); None if it is valid.

        `may_rule_out`: whether a token may have probability 0 (-inf). A rule may do so, and a model behind an endpoint
        that only returns the likeliest tokens. A single local model never does.
        """
        for i, logprob in enumerate(self.logprobs):
            if not math.isfinite(logprob) and not (may_rule_out and logprob == -math.inf):
                return f"the log-probability of token {i} is {logprob}"
        return None


@dataclass(frozen=True)
class Trace:
    """The probabilities behind the m tokens of an answer, at temperature 1, rounded to six decimals."""

    p: tuple[float, ...]
    """[m] the arm's probability of each token."""
    p_base: tuple[float, ...]
    """[m] the base's probability of each token; empty for a single model."""
    differs: tuple[bool, ...]
    """[m] whether another token is more likely under the base; empty for a single model."""
    top: Mapping[str, tuple[TopTokens, ...]]
    """"fused" (the arm) or a role of its rule -> [m] the five likeliest tokens; empty unless the level is full."""


@dataclass(frozen=True)
class Generated:
    """One arm's answer to a GenerateRequest: m tokens."""

    tokens: tuple[int, ...]
    text: str
    """Decoded without special tokens, cut before the first stop string."""
    weights: tuple[tuple[float, ...], ...]
    """[T][m] as in `Scored`."""
    finish: str
    """"stop" (stop string), "eos", "length", or "undefined" (the logits after `tokens` are not finite)."""
    trace: Trace | None = None
    """None if none was requested or recorded."""

    def undefined(self, may_rule_out: bool) -> str | None:
        """Why this is not a valid answer; None if it is. A rule's logits may be -inf for some tokens, never for all."""
        where = f"the logits of token {len(self.tokens)} of the answer are NaN or infinite"
        return where if self.finish == "undefined" else None


Request = ScoreRequest | GenerateRequest
Answer = Scored | Generated
