"""Requests to one OpenAI-compatible endpoint: several at once, repeated where that may help, and counted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from proxytune.errors import UserError
from proxytune.models.api.endpoint import KEYS, Endpoint, api_key

T = TypeVar("T")
SentPrompt = str | tuple[int, ...]
"""A text, or the ids of its tokens."""
NamedTokens = list[tuple[str, float]]
"""The endpoint's likeliest next tokens as it writes them, and their natural-log probabilities."""


@dataclass
class Usage:
    """What an endpoint was asked. Tokens are as it counts them; 0 if it does not say."""

    requests: int = 0
    """Repeated ones included."""
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Malformed(Exception):
    """An answer that is not what was requested; `str` of this says what it is."""


class Client:
    """`what` names the key of the configuration in errors, which are one line each. Safe for several threads."""

    def __init__(self, endpoint: Endpoint, what: str = "models.base") -> None:
        """Raises UserError without the package `openai`, and without a key in the environment."""
        try:
            import openai
        except ImportError as error:
            raise UserError(f"{what}.api needs the package openai: pip install 'proxytune[api]'") from error
        self.endpoint = endpoint
        self.what = f"{what} ({endpoint.model} at {endpoint.api})"
        self.usage = Usage()
        self._lock = threading.Lock()
        self._openai: Any = openai.OpenAI(
            base_url=endpoint.api, api_key=api_key(self.what), timeout=endpoint.timeout, max_retries=endpoint.retries
        )

    def each(self, ask: Callable[[T], Any], about: Iterable[T]) -> list[Any]:
        """`ask` of each of `about`, in order; the first error ends it, and the rest is not asked."""
        with ThreadPoolExecutor(self.endpoint.concurrency) as pool:
            try:
                return list(pool.map(ask, about))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def next_tokens(self, prompt: SentPrompt) -> NamedTokens | None:
        """The likeliest tokens after `prompt`; None where the model ends the text there and gives no probabilities.

        Raises UserError: no answer, a wrong key, no such model, no log-probabilities.
        """
        if self.endpoint.format == "chat":
            body: dict[str, Any] = {"messages": [{"role": "user", "content": prompt}], "logprobs": True}
            return self._ask(body | {"top_logprobs": self.endpoint.top_logprobs, "max_tokens": 1}, self._of_chat)
        asked = prompt if isinstance(prompt, str) else list(prompt)
        body = {"prompt": asked, "logprobs": self.endpoint.top_logprobs, "max_tokens": 1}
        return self._ask(body, self._of_completion)

    def reply(self, messages: Sequence[Mapping[str, str]], max_tokens: int) -> str:
        """The text of the assistant's turn. Raises UserError as `next_tokens` does."""
        return self._ask({"messages": list(messages), "max_tokens": max_tokens}, _text)

    def _ask(self, body: Mapping[str, Any], read: Callable[[Any], T]) -> T:
        api = self._openai.chat.completions if "messages" in body else self._openai.completions
        options = {"temperature": 0, "extra_body": dict(self.endpoint.options)}
        for _ in range(1 + self.endpoint.retries):
            with self._one_line():
                raw = api.with_raw_response.create(model=self.endpoint.model, **body, **options)
            self._count(requests=1 + raw.retries_taken)
            try:
                answer = _parsed(raw)
                self._count(**_tokens(answer))
                return read(answer)
            except Malformed as error:
                problem = error
        raise UserError(f"{self.what} does not answer as the API says: {problem}; re-run to resume")

    def take_usage(self) -> Usage:
        """What was asked since the last call."""
        with self._lock:
            taken, self.usage = self.usage, Usage()
        return taken

    def _count(self, **more: int) -> None:
        with self._lock:
            for name, number in more.items():
                setattr(self.usage, name, getattr(self.usage, name) + number)

    def _of_completion(self, answer: Any) -> NamedTokens | None:
        choice = _choice(answer)
        top = getattr(choice.logprobs, "top_logprobs", None)
        if top and top[0]:
            return list(top[0].items())
        if choice.finish_reason == "stop" and choice.logprobs is not None:
            return None
        raise self._no_logprobs()

    def _of_chat(self, answer: Any) -> NamedTokens | None:
        choice = _choice(answer)
        content = getattr(choice.logprobs, "content", None)
        if content and content[0].top_logprobs:
            return [(one.token, one.logprob) for one in content[0].top_logprobs]
        if choice.finish_reason == "stop" and choice.logprobs is not None:
            return None
        raise self._no_logprobs()

    def _no_logprobs(self) -> UserError:
        return UserError(
            f"{self.what} gives no log-probabilities, which fusion needs: choose another model or endpoint, "
            "or the other of format=completions and format=chat"
        )

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        """The client's errors, after its retries, as one line each."""
        import openai

        tries = f"after {1 + self.endpoint.retries} tries"
        try:
            yield
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise UserError(f"{self.what} refuses the key in {' or '.join(KEYS)}: {_said(error)}") from error
        except openai.NotFoundError as error:
            raise UserError(f"{self.what} is not there: {_said(error)}") from error
        except openai.APITimeoutError as error:
            seconds = f"{self.endpoint.timeout:g} seconds"
            raise UserError(f"{self.what} gives no answer within {seconds}, {tries}: re-run to resume") from error
        except openai.APIConnectionError as error:
            raise UserError(f"{self.what} cannot be reached, {tries}: {_cause(error)}; re-run to resume") from error
        except openai.APIStatusError as error:
            passing = error.status_code in (408, 409, 429) or error.status_code >= 500
            raise UserError(
                f"{self.what} answers {_said(error)}" + (f", {tries}; re-run to resume" if passing else "")
            ) from error


def _parsed(raw: Any) -> Any:
    """The answer; Malformed where it is cut short, or no JSON object of the API."""
    try:
        answer = raw.parse()
    except ValueError as error:
        raise Malformed(f"not JSON ({error})") from error
    if isinstance(answer, str):
        raise Malformed(f"a page of type {raw.headers.get('content-type')}")
    return answer


def _tokens(answer: Any) -> dict[str, int]:
    """What the answer says of its tokens."""
    said = getattr(answer, "usage", None)
    return {name: getattr(said, name, None) or 0 for name in ("prompt_tokens", "completion_tokens")}


def _choice(answer: Any) -> Any:
    if not getattr(answer, "choices", None):
        raise Malformed("no choices")
    return answer.choices[0]


def _text(answer: Any) -> str:
    text = _choice(answer).message.content
    if not isinstance(text, str):
        raise Malformed("no text")
    return text


def _said(error: Any) -> str:
    """What a server says of an error, and its number."""
    body = error.body if isinstance(error.body, dict) else {}
    return f"{error.status_code} {' '.join(str(body.get('message') or error.message).split())[:300]}"


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__
