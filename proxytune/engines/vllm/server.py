"""vLLM's OpenAI-compatible server over the fused model: each arm is a model name; `vllm_xargs` changes its rule."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
from collections.abc import Iterable, Mapping
from typing import Any

from proxytune.engines.vllm.installed import check_installed
from proxytune.engines.vllm.launch import engine_arguments, refusals
from proxytune.engines.vllm.settings import FusedSettings, check_asked
from proxytune.errors import UserError, unknown_name
from proxytune.fusion.arm import Arm
from proxytune.models.facts import MemberFacts, Members
from proxytune.models.family import FamilySpec

ANSWERED = ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages")
"""Paths whose requests an arm answers."""
HARMLESS = ("/tokenize", "/detokenize")
"""Other paths that may be posted to. vLLM has more, which would pass arms by."""


def serve(
    members: Members[MemberFacts] | None,
    family: FamilySpec,
    arms: Iterable[Arm],
    host: str,
    port: int,
    **settings: Any,
) -> None:
    """Serves `arms` over HTTP until it is stopped; the first answers requests that name no model.

    `settings` are those of `engine_arguments`. Raises UserError before anything loads for a port in use.
    """
    check_installed()
    _check_port(host, port)
    arms = list(arms)
    arguments = engine_arguments(members, family, arms, **settings)

    from vllm.entrypoints.launchers.api_server.entry import run_server
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.platforms import current_platform
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    options = make_arg_parser(FlexibleArgumentParser()).parse_args([])
    more = {
        "served_model_name": [arm.name for arm in arms],
        "middleware": [f"{__name__}.ArmChoice"],
        "host": host,
        "port": port,
        "enforce_eager": current_platform.is_cpu(),
    }
    for name, value in (arguments | more).items():
        setattr(options, name, value)
    with refusals():
        asyncio.run(run_server(options))


def _check_port(host: str, port: int) -> None:
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OSError as error:
            why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be opened: {error.strerror}"
            raise UserError(f"port={port} on host={host} {why}: give another port") from error


class ArmChoice:
    """ASGI middleware: takes a request's `model` for its arm, and refuses what the arm's rule would not take.

    A wrong request gets status 400 and our one line before it reaches vLLM. Answers carry the name that was asked for.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        path = scope.get("path")
        if scope["type"] != "http" or scope["method"] != "POST" or path in HARMLESS:
            await self.app(scope, receive, send)
        elif path not in ANSWERED:
            known = ", ".join((*ANSWERED, *HARMLESS))
            await _refuse(404, f"POST {path} is not served: it would pass the arms by. Known: {known}", send)
        else:
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        settings = FusedSettings.of(scope["app"].state.vllm_config)
        try:
            body, name = with_arm(await _read(receive), settings)
        except UserError as error:
            await _refuse(400, str(error), send)
            return
        served = next(iter(settings.arms or ()))
        await self.app(scope, _replayed(body, receive), _renamed(served, name, send))


def with_arm(body: bytes, settings: FusedSettings) -> tuple[bytes, str]:
    """The request with its arm in `vllm_xargs`, and the arm's name. What is no JSON object is left to vLLM to refuse.

    Raises UserError for an unknown model, and for parameters that the arm's rule does not take.
    """
    arms = settings.arms or {}
    first = next(iter(arms))
    try:
        request = json.loads(body)
    except ValueError:
        return body, first
    if not isinstance(request, dict) or not isinstance(request.get("vllm_xargs") or {}, dict):
        return body, first
    if request.get("use_beam_search"):
        raise UserError("use_beam_search=true is not supported: vLLM's beams lose the arm; sample, or decode greedily")
    name = request.get("model") or first
    if not isinstance(name, str) or name not in arms:
        raise unknown_name("model", name, arms)
    given = request.get("vllm_xargs") or {}
    if "arm" in given:
        raise UserError("vllm_xargs.arm is not needed: give the arm's name as model")
    request["vllm_xargs"] = {**given, "arm": name}
    check_asked(settings, request["vllm_xargs"])
    return json.dumps(request).encode(), name


async def _read(receive: Any) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


def _replayed(body: bytes, receive: Any) -> Any:
    """`receive` with `body` for the request; then what comes, such as the client's going away."""
    given = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def replay() -> Any:
        for message in given:
            return message
        return await receive()

    return replay


def _renamed(served: str, name: str, send: Any) -> Any:
    """`send` with the arm's name where vLLM writes that of the first. In JSON no text can hold these bytes: its quotes
    are escaped."""
    written, meant = (f'"model":{json.dumps(one)}'.encode() for one in (served, name))

    async def rename(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            headers = [(key, value) for key, value in message["headers"] if key.lower() != b"content-length"]
            message = {**message, "headers": headers}
        elif message["type"] == "http.response.body":
            message = {**message, "body": message.get("body", b"").replace(written, meant)}
        await send(message)

    return send if served == name else rename


async def _refuse(status: int, line: str, send: Any) -> None:
    kind = "NotFoundError" if status == 404 else "BadRequestError"
    body = json.dumps({"error": {"message": line, "type": kind, "param": None, "code": status}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
