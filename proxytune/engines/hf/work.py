"""Estimates how long requests take without measuring time: every run must store the same requests together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from proxytune.engines.requests import GenerateRequest, Request
from proxytune.fusion.arm import Arm
from proxytune.models.distinct import DistinctMembers
from proxytune.models.threads import parameters

SECONDS = 120.0
"""The estimated work that is stored together if all answers have the maximum length; most are much shorter."""
CPU, ACCELERATOR = 1e10, 3e13
"""Parameters times tokens per second: of a CPU with a few cores, and of one GPU with 16-bit models."""
STEP = 0.03
"""The minimum seconds per token of a batch and member on an accelerator, for any batch size."""


def portion(members: DistinctMembers, requests: Sequence[Request], arms: Sequence[Arm], batch: int) -> int:
    """The number of first `requests` that take about `SECONDS`, but enough to fill a batch; at least 1."""
    on_cpu = members.ensemble.device.type == "cpu"
    arms_of = Counter(role for arm in arms for role in members.needed(arm.roles))
    sizes = {role: parameters(members.ensemble[role]) for role in arms_of}
    fewest = -(-batch // len(arms)) if on_cpu else batch
    prompt, seconds = None, 0.0
    for number, request in enumerate(requests):
        new = request.max_new_tokens if isinstance(request, GenerateRequest) else len(request.continuation)
        # Arms may all generate different tokens; a continuation to score is read once for all arms.
        branches = arms_of if isinstance(request, GenerateRequest) else dict.fromkeys(arms_of, 1)
        read = 0 if request.prompt == prompt else len(request.prompt.tokens)
        products = sum(size * (read + branches[role] * new) for role, size in sizes.items())
        seconds += products / CPU if on_cpu else products / ACCELERATOR + STEP * len(sizes) * new / batch
        if seconds > SECONDS and number >= fewest:
            return number
        prompt = request.prompt
    return len(requests)
