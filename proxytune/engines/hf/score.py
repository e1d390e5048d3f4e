"""Teacher-forced scoring: one pass of each voice, every arm from the same logits.

Shapes: N positions, M targets, V vocabulary, T experts.

    prompt       p0 p1 p2 | c0 c1 c2       continuation
    read first   p0 p1 p2                  one row per different prompt; logits after p2 score c0
    read next             | c0 c1          one row per continuation; logits after c0, c1 score c1, c2
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from proxytune.engines.hf.batching import Queue
from proxytune.engines.hf.distinct import Voices
from proxytune.engines.hf.kv import Readings
from proxytune.engines.requests import Scored, ScoreRequest
from proxytune.fusion.arm import Arm

SLICE = 2**26
"""Logits read at once by each voice: 256 MiB in float32. Long continuations are read in slices of time."""
CHUNK = 2**18
"""Logits of each voice that the arms work on at once, per core of a CPU: 1 MiB in float32, so that they stay cached."""


class Target(NamedTuple):
    """A token to be scored: by the logits at `row` and `time`, for the job at `slot`."""

    row: int
    time: int
    slot: int
    token: int


Saying = tuple[float, bool, list[float]]
"""What an arm says of one target: log-probability, whether it is its likeliest token, weights [T]."""


class Tally:
    """What each arm has said of one continuation so far."""

    def __init__(self, arms: Sequence[Arm]) -> None:
        self.said: dict[str, list[Saying]] = {arm.name: [] for arm in arms}

    def scored(self, arm: Arm) -> Scored:
        said = self.said[arm.name]
        return Scored(
            logprobs=tuple(logprob for logprob, _, _ in said),
            greedy=tuple(greedy for _, greedy, _ in said),
            weights=tuple(tuple(weights[t] for _, _, weights in said) for t in range(len(arm.experts))),
        )


def score_some(voices: Voices, queue: Queue[ScoreRequest]) -> Iterator[tuple[int, str, Scored]]:
    """Every arm scores the continuations of the next jobs, which all have the same arms."""
    jobs = queue.take()
    arms = jobs[0].arms
    tallies = [Tally(arms) for _ in jobs]
    _read(voices, [job.request for job in jobs], arms, tallies)
    for job, tally in zip(jobs, tallies, strict=True):
        for arm in arms:
            yield job.index, arm.name, tally.scored(arm)


@torch.inference_mode()
def _read(voices: Voices, requests: Sequence[ScoreRequest], arms: Sequence[Arm], tallies: Sequence[Tally]) -> None:
    prompts, at = voices.unique(request.prompt for request in requests)
    conts = [request.continuation for request in requests]
    readings = Readings(voices.ensemble)
    first = readings.start(prompts, voices.names)
    targets = [Target(at[slot], 0, slot, cont[0]) for slot, cont in enumerate(conts) if cont]
    _judge(voices, first, targets, arms, tallies)

    rows, start = [slot for slot, cont in enumerate(conts) if len(cont) > 1], 0
    kept = [at[slot] for slot in rows]
    while rows:
        stop = start + max(1, SLICE // voices.ensemble.vocab_size // len(rows))
        tokens = [conts[slot][:-1][start:stop] for slot in rows]
        logits = readings.feed(dict.fromkeys(voices.names, kept), dict.fromkeys(voices.names, tokens))
        targets = [
            Target(row, time, slot, conts[slot][start + time + 1])
            for row, slot in enumerate(rows)
            for time in range(len(tokens[row]))
        ]
        _judge(voices, logits, targets, arms, tallies)
        kept = [row for row, slot in enumerate(rows) if len(conts[slot]) - 1 > stop]
        rows, start = [rows[row] for row in kept], stop


def _judge(
    voices: Voices,
    logits: Mapping[str, Tensor],
    targets: Sequence[Target],
    arms: Sequence[Arm],
    tallies: Sequence[Tally],
) -> None:
    """All arms on all `targets`, from `logits` [B, t, V] by voice; a position with several targets is fused once."""
    positions: dict[tuple[int, int], list[Target]] = {}
    for target in targets:
        positions.setdefault((target.row, target.time), []).append(target)
    together = CHUNK * torch.get_num_threads() if voices.ensemble.device.type == "cpu" else SLICE
    size = max(1, together // voices.ensemble.vocab_size)
    spots = list(positions)
    for start in range(0, len(spots), size):
        here = spots[start : start + size]
        rows, times = torch.tensor(here).unbind(1)
        logits_NV = {voice: tensor[rows, times].float() for voice, tensor in logits.items()}
        aimed = [(n, target) for n, spot in enumerate(here) for target in positions[spot]]
        at = torch.tensor([n for n, _ in aimed], device=voices.ensemble.device)
        tokens = torch.tensor([target.token for _, target in aimed], device=voices.ensemble.device)
        for arm in arms:
            said = _say(arm, voices.by_role(arm, logits_NV), at, tokens)
            for (_, target), saying in zip(aimed, said, strict=True):
                tallies[target.slot].said[arm.name].append(saying)


def _say(arm: Arm, logits_NV: Mapping[str, Tensor], at: Tensor, tokens: Tensor) -> list[Saying]:
    """What `arm` says of `tokens` [M] at the positions `at` [M]."""
    fused, weights_TN = arm.answer(logits_NV)
    logprobs = fused.log_softmax(dim=-1)[at, tokens].tolist()
    # argmax, which says which of equal logits comes first, is slow on a CPU: ask it only about largest logits.
    greedy = fused[at, tokens] == fused.amax(dim=-1)[at]
    greedy[greedy.clone()] = fused[at[greedy]].argmax(dim=-1) == tokens[greedy]
    return list(zip(logprobs, greedy.tolist(), weights_TN.T[at].tolist(), strict=True))
