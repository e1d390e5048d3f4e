"""Checks of arms and requests that every engine makes before any model runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from proxytune.engines.requests import GenerateRequest, ScoreRequest
from proxytune.errors import UserError
from proxytune.fusion.arm import Arm


def check_arms(arms: Sequence[Arm]) -> None:
    """Raises UserError if there are no arms, or two arms with the same name."""
    if not arms:
        raise UserError("no arms: nothing would answer the requests")
    names = [arm.name for arm in arms]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two arms are called {name!r}: every arm needs a unique name")


def check_length(
    index: int, request: ScoreRequest | GenerateRequest, new_tokens: int, windows: Mapping[str, int | None]
) -> None:
    """Raises UserError for an empty prompt, and for a request that exceeds a role's window (None: no limit)."""
    for role, window in windows.items():
        prompt = len(request.prompt.of(role))
        if prompt == 0:
            raise UserError(f"request {index}: empty prompt for {role}; give at least a start token (BOS or EOS)")
        # The last token is never read.
        needed = prompt + max(new_tokens - 1, 0)
        if window is not None and needed > window:
            raise UserError(
                f"request {index}: {role} reads at most {window} tokens and would need {needed} "
                f"({prompt} of prompt, {new_tokens} of answer); shorten the prompt or the answer"
            )
