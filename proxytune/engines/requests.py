"""What an engine is asked and what it answers. Tokens are ids of the shared vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Prompt:
    """The tokens before the answer; `own` holds the roles that read a prompt of their own (a chat expert, say)."""

    tokens: tuple[int, ...]
    own: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def of(self, role: str) -> tuple[int, ...]:
        return self.own.get(role, self.tokens)


@dataclass(frozen=True)
class ScoreRequest:
    """How likely is `continuation` after `prompt`?"""

    prompt: Prompt
    continuation: tuple[int, ...]


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
    seed: int = 0
    """Noise is drawn from (seed, step) alone, so arms of one request share it and batches do not matter."""


@dataclass(frozen=True)
class Scored:
    """One arm's answer to a ScoreRequest with n continuation tokens."""

    logprobs: tuple[float, ...]
    """[n] natural-log probabilities."""
    greedy: tuple[bool, ...]
    """[n] whether each token is the arm's most likely one."""
    weights: tuple[tuple[float, ...], ...]
    """[T][n] the weight of each expert at each token; empty for a model alone."""


@dataclass(frozen=True)
class Generated:
    """One arm's answer to a GenerateRequest: m tokens."""

    tokens: tuple[int, ...]
    text: str
    """Decoded without special tokens, cut before the first stop string."""
    weights: tuple[tuple[float, ...], ...]
    """[T][m] as in `Scored`."""
    finish: str
    """"stop" (stop string), "eos" or "length"."""
