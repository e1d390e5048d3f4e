"""How long requests take, by count and not by the clock: what is stored together must be the same in every run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from proxytune.engines.requests import GenerateRequest, Request
from proxytune.fusion.arm import Arm
from proxytune.models.distinct import DistinctMembers
from proxytune.models.threads import parameters

SECONDS = 120.0
"""Of work that is stored together if every answer is as long as it may be; most are a good deal shorter."""
CPU, ACCELERATOR = 1e10, 3e13
"""Parameters times tokens per second: for a CPU of a few cores, and for one GPU with models of 16 bits."""
STEP = 0.03
"""Seconds that a member takes on an accelerator for one token of a batch, however small the batch is."""


def portion(members: DistinctMembers, requests: Sequence[Request], arms: Sequence[Arm], batch: int) -> int:
    """How many of the first `requests` take about `SECONDS`, and no fewer than fill a batch: at least 1."""
    on_cpu = members.ensemble.device.type == "cpu"
    arms_of = Counter(role for arm in arms for role in members.needed(arm.roles))
    sizes = {role: parameters(members.ensemble[role]) for role in arms_of}
    fewest = -(-batch // len(arms)) if on_cpu else batch
    prompt, seconds = None, 0.0
    for number, request in enumerate(requests):
        new = request.max_new_tokens if isinstance(request, GenerateRequest) else len(request.continuation)
        # Arms may all generate different tokens; what is scored is read once for all of them.
        branches = arms_of if isinstance(request, GenerateRequest) else dict.fromkeys(arms_of, 1)
        read = 0 if request.prompt == prompt else len(request.prompt.tokens)
        products = sum(size * (read + branches[role] * new) for role, size in sizes.items())
        seconds += products / CPU if on_cpu else products / ACCELERATOR + STEP * len(sizes) * new / batch
        if seconds > SECONDS and number >= fewest:
            return number
        prompt = request.prompt
    return len(requests)
