"""A small OpenAI-compatible server over a tiny model, on loopback, that can be told to misbehave."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

KEY = "sk-test-0123456789"
PASS = "pass"
Fault = Callable[["Handler"], object]
"""Answers in its own way, or returns PASS."""


class Served:
    """What the server serves, what it was asked, and how it is to misbehave."""

    def __init__(
        self, model: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase | None, most: int = 10**6
    ) -> None:
        """`most` log-probabilities are given at most, whatever is asked for."""
        self.model, self.tokenizer, self.most = model, tokenizer, most
        self.bodies: list[dict[str, Any]] = []
        self.faults: deque[Fault] = deque()
        """Each is for one request, the first for the next; then it is `always`."""
        self.always: Fault | None = None
        self.replies: Callable[[dict[str, Any]], str] | None = None
        """The text of a chat's answer; None: the likeliest token."""
        self.lock = threading.Lock()
        self.url = ""

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if self.replies is not None:
            return _chat(self.replies(body), None, len(str(body)))
        chat = path.endswith("/chat/completions")
        prompt = body["messages"][-1]["content"] if chat else body["prompt"]
        assert self.tokenizer is not None
        tokens = self.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
        wanted = min(self.most, body["top_logprobs"] if chat else body["logprobs"])
        top = self.top(tokens, wanted, bool(body.get("return_tokens_as_token_ids")))
        return (_chat if chat else _completion)(top[0][0], top, len(tokens))

    def top(self, tokens: list[int], k: int, by_id: bool) -> list[tuple[str, float]]:
        """The k likeliest tokens after `tokens`, by name, read anew without a cache."""
        assert self.model is not None and self.tokenizer is not None
        with self.lock, torch.inference_mode():
            logits = self.model(input_ids=torch.tensor([tokens])).logits[0, -1].float()
        logprobs = logits[: len(self.tokenizer)].log_softmax(-1)
        values, ids = logprobs.topk(min(k, len(logprobs)))
        names = [f"token_id:{i}" if by_id else self.tokenizer.decode([i]) for i in ids.tolist()]
        return list(zip(names, values.tolist(), strict=True))


def _completion(text: str, top: list[tuple[str, float]], n: int) -> dict[str, Any]:
    logprobs = {"tokens": [text], "token_logprobs": [top[0][1]], "top_logprobs": [dict(top)], "text_offset": [0]}
    choice = {"index": 0, "text": text, "finish_reason": "length", "logprobs": logprobs}
    return {"id": "1", "object": "text_completion", "created": 0, "model": "tiny", "choices": [choice], **_usage(n)}


def _chat(text: str, top: list[tuple[str, float]] | None, n: int) -> dict[str, Any]:
    named = [{"token": token, "bytes": None, "logprob": logprob} for token, logprob in top or ()]
    content = [{"token": text, "bytes": None, "logprob": 0.0, "top_logprobs": named}] if top else None
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "length"}
    choice["logprobs"] = {"content": content} if top else None
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "tiny", "choices": [choice], **_usage(n)}


def _usage(n: int) -> dict[str, Any]:
    return {"usage": {"prompt_tokens": n, "completion_tokens": 1, "total_tokens": n + 1}}


class Handler(BaseHTTPRequestHandler):
    served: Served

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.served.bodies.append(body)
        fault = self.served.faults.popleft() if self.served.faults else self.served.always
        if fault is not None and fault(self) != PASS:
            return
        if self.headers["authorization"] != f"Bearer {KEY}":
            self.send({"error": {"message": f"wrong key {self.headers['authorization']}"}}, 401)
        elif body["model"] == "other":
            self.send({"error": {"message": f"no model {body['model']}"}}, 404)
        else:
            self.send(self.served.answer(self.path, body))

    def send(self, answer: object, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self.send_text(json.dumps(answer), status, headers)

    def send_text(self, text: str, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        content = text.encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


def limited(handler: Handler) -> None:
    """429, with how long to wait."""
    handler.send({"error": {"message": "too many requests"}}, 429, {"retry-after": "0.01"})


def broken(handler: Handler) -> None:
    """500, with how long to wait."""
    handler.send({"error": {"message": "out of order"}}, 500, {"retry-after": "0.01"})


def truncated(handler: Handler) -> None:
    """Half of an answer."""
    handler.send_text('{"id": "1", "choices": [{"in')


def slow(handler: Handler) -> str:
    """An answer that comes too late."""
    time.sleep(0.5)
    return PASS


def gone(handler: Handler) -> None:
    """The connection ends without an answer."""
    handler.close_connection = True
    handler.connection.close()


@contextmanager
def serving(served: Served) -> Iterator[Served]:
    """The server runs; `served.url` is its address."""
    kind = type("Bound", (Handler,), {"served": served})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
