"""Where a model behind an OpenAI-compatible endpoint is found: only a description, without requests."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from proxytune.errors import UserError
from proxytune.validation import Count, FromZero, Positive, check, strict_dataclass

KEYS = ("PROXYTUNE_API_KEY", "OPENAI_API_KEY")
"""The environment variables that may hold the key; the first that is set counts."""


def _address(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is not an address like https://api.openai.com/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(f"give the address alone; a key comes from the environment variable {KEYS[0]}")
    return url.rstrip("/")


Address = Annotated[str, AfterValidator(_address)]


@strict_dataclass("models.base")
class Endpoint:
    """A mapping with `api`, `model` and `top_logprobs`: a model behind an OpenAI-compatible endpoint."""

    api: Address
    """the address under which /completions or /chat/completions is found, like https://api.openai.com/v1"""
    model: Annotated[str, Field(min_length=1)]
    """the model's name at that address"""
    top_logprobs: Count
    """an integer from 1: how many of the likeliest tokens the endpoint gives at each step (OpenAI: 5 of completions,
    20 of chats)"""
    format: Literal["completions", "chat"] = "completions"
    """completions or chat: a text is continued, or is the user's turn. Answers of several tokens need completions."""
    tokenizer: Annotated[str, Field(min_length=1)] | None = None
    """a hub id or a local folder of the endpoint's own tokenizer, which is then the family's, or null: it is another
    than the family's, and only single-letter choices can be compared"""
    window: Count | None = None
    """an integer from 1 (tokens that the model reads), or null: as many as the other members"""
    concurrency: Count = 8
    """an integer from 1: requests under way at once"""
    timeout: Positive = 60.0
    """seconds above 0 to wait for an answer"""
    retries: FromZero = 5
    """an integer from 0: how often a request is repeated that failed for want of an answer, a rate limit or the
    server's own error, after pauses that grow (or that the server asks for)"""
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """a mapping of further keys of a request's body, as the server wants them ({return_tokens_as_token_ids: true} is
    vLLM's, and has tokens named by their ids)"""

    def __post_init__(self) -> None:
        if self.format == "chat" and self.tokenizer is not None:
            raise ValueError(
                "tokenizer has no effect with format=chat, which cannot continue an answer token by token: "
                "leave it out, or give format=completions"
            )

    @classmethod
    def of(cls, value: Mapping[str, Any], key: str = "models.base") -> Endpoint:
        return check(cls, value, key)

    @property
    def identity(self) -> str:
        """What its answers depend on. The address is part of it: under one name two servers may have other weights."""
        parts = [f"api={self.api}", f"model={self.model}", f"top_logprobs={self.top_logprobs}", f"format={self.format}"]
        parts += [f"tokenizer={self.tokenizer}"] if self.tokenizer else []
        parts += [f"{name}={self.options[name]}" for name in sorted(self.options)]
        return " ".join(parts)


def api_key(what: str) -> str:
    """The key, only from the environment; UserError that begins with `what` where there is none."""
    found = next((key for name in KEYS if (key := os.environ.get(name))), None)
    if found is None:
        raise UserError(
            f"{what} needs a key: set the environment variable {' or '.join(KEYS)} "
            "(to any text for a server that asks for none)"
        )
    return found
