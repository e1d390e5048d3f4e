"""Teacher-forced scoring: each distinct member runs once, and every arm is evaluated from the same logits.

Shapes: N positions, M targets, V vocabulary, T experts.

    prompt       p0 p1 p2 | c0 c1 c2       continuation
    read first   p0 p1 p2                  one row per different prompt; logits after p2 score c0
    read next             | c0 c1          one row per continuation; logits after c0, c1 score c1, c2
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from proxytune.engines.hf.batching import Queue
from proxytune.engines.hf.kv import KVStates
from proxytune.engines.requests import Scored, ScoreRequest
from proxytune.fusion.arm import Arm
from proxytune.models.distinct import DistinctMembers

SLICE = 2**26
"""The maximum number of logits per member in memory: 256 MiB in float32. Long continuations are read in slices."""
CHUNK = 2**18
"""The number of logits per member and CPU core that arms process at once: 1 MiB in float32, which stays cached."""


class Target(NamedTuple):
    """A token to score with the logits at `row` and `time`, for the request with index `request`."""

    row: int
    time: int
    request: int
    token: int


TokenScore = tuple[float, bool, list[float]]
"""One arm's score of a target: its log-probability, whether it is the arm's likeliest token, and the weights [T]."""
Scores = defaultdict[tuple[int, str], list[TokenScore]]
"""The scores of each request's continuation so far, keyed by (request index, arm name)."""


def score_some(
    members: DistinctMembers, arms: Sequence[Arm], queue: Queue[ScoreRequest]
) -> Iterator[tuple[int, str, Scored]]:
    """Scores the continuations of the next requests in the queue with all `arms`."""
    taken = queue.take()
    scores: Scores = defaultdict(list)
    _read(members, [pending.request for pending in taken], arms, scores)
    for index, pending in enumerate(taken):
        for arm in arms:
            yield pending.index, arm.name, _scored(scores[index, arm.name], len(arm.experts))


def _scored(scores: Sequence[TokenScore], experts: int) -> Scored:
    return Scored(
        logprobs=tuple(logprob for logprob, _, _ in scores),
        greedy=tuple(greedy for _, greedy, _ in scores),
        weights=tuple(tuple(weights[t] for _, _, weights in scores) for t in range(experts)),
    )


@torch.inference_mode()
def _read(members: DistinctMembers, requests: Sequence[ScoreRequest], arms: Sequence[Arm], scores: Scores) -> None:
    """The members read prompts and continuations; adds the scores to `scores`."""
    conts = [request.continuation for request in requests]
    states = KVStates(members.ensemble)
    logits, at = states.prefill((request.prompt for request in requests), members.roles)
    targets = [Target(at[index], 0, index, cont[0]) for index, cont in enumerate(conts) if cont]
    _score_targets(members, logits, targets, arms, scores)

    rows, start = [index for index, cont in enumerate(conts) if len(cont) > 1], 0
    kept = [at[index] for index in rows]
    while rows:
        stop = start + max(1, SLICE // members.ensemble.vocab_size // len(rows))
        tokens = [conts[index][:-1][start:stop] for index in rows]
        logits = states.extend(dict.fromkeys(members.roles, kept), dict.fromkeys(members.roles, tokens))
        targets = [
            Target(row, time, index, conts[index][start + time + 1])
            for row, index in enumerate(rows)
            for time in range(len(tokens[row]))
        ]
        _score_targets(members, logits, targets, arms, scores)
        kept = [row for row, index in enumerate(rows) if len(conts[index]) - 1 > stop]
        rows, start = [rows[row] for row in kept], stop


def _score_targets(
    members: DistinctMembers,
    logits: Mapping[str, Tensor],
    targets: Sequence[Target],
    arms: Sequence[Arm],
    scores: Scores,
) -> None:
    """Scores all `targets` with all arms, from `logits` [B, t, V] by role; each position is fused once."""
    positions: dict[tuple[int, int], list[Target]] = {}
    for target in targets:
        positions.setdefault((target.row, target.time), []).append(target)
    device, vocab_size = members.ensemble.device, members.ensemble.vocab_size
    size = max(1, (CHUNK * torch.get_num_threads() if device.type == "cpu" else SLICE) // vocab_size)
    spots = list(positions)
    for start in range(0, len(spots), size):
        here = spots[start : start + size]
        rows, times = torch.tensor(here).unbind(1)
        logits_NV = {role: tensor[rows, times].float() for role, tensor in logits.items()}
        aimed = [(n, target) for n, spot in enumerate(here) for target in positions[spot]]
        at = torch.tensor([n for n, _ in aimed], device=device)
        tokens = torch.tensor([target.token for _, target in aimed], device=device)
        for arm in arms:
            with members.ensemble.clock.time(("rule", arm.name), device):
                new = _token_scores(arm, members.by_role(arm.roles, logits_NV), at, tokens)
            for (_, target), score in zip(aimed, new, strict=True):
                scores[target.request, arm.name].append(score)


def _token_scores(arm: Arm, logits_NV: Mapping[str, Tensor], at: Tensor, tokens: Tensor) -> Iterator[TokenScore]:
    """The scores that `arm` gives to `tokens` [M] at the positions `at` [M]."""
    fused, weights_TN = arm.answer(logits_NV)
    logprobs = fused.log_softmax(dim=-1)[at, tokens].tolist()
    # argmax takes the first of equal logits but is slow on a CPU. Call it only where the target's logit is the largest.
    greedy = fused[at, tokens] == fused.amax(dim=-1)[at]
    greedy[greedy.clone()] = fused[at[greedy]].argmax(dim=-1) == tokens[greedy]
    return zip(logprobs, greedy.tolist(), weights_TN.T[at].tolist(), strict=True)
