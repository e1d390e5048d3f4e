"""Decoding for many arms at once: arms that have produced the same prefix are one row.

    prompt --+-- "The" --+-- " cat"  {base, static 0.5}      All arms of a request start in one row. Arms that choose
             |           +-- " dog"  {proxy}                 different tokens split the row, caches included; arms
             +-- "A"  {expert}                               that agree go on sharing all work.

Each voice reads only the rows that some arm needs it for, and leaves when none does.

Shapes: B rows of one voice, n rows of one arm, V vocabulary, T experts.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proxytune.engines.arms import Arm
from proxytune.engines.hf.batching import Job
from proxytune.engines.hf.ending import Ending, eos_tokens
from proxytune.engines.hf.sampling import Noise, choose
from proxytune.engines.hf.voices import Readings, Voices
from proxytune.engines.requests import Generated, GenerateRequest

Finished = tuple[int, str, Generated]


@dataclass
class Row:
    """One prefix of an answer, and the arms that have produced it."""

    job: Job[GenerateRequest]
    ending: Ending
    arms: list[Arm]
    tokens: tuple[int, ...]
    at: dict[str, int]
    """The row's place in each voice's reading."""


def generate_group(voices: Voices, jobs: Sequence[Job[GenerateRequest]]) -> Iterator[Finished]:
    """Every job's arms answer it; answers come as they are finished."""
    for job in jobs:
        if job.request.max_new_tokens == 0:
            for arm in job.arms:
                yield job.index, arm.name, Generated((), "", tuple(() for _ in arm.experts), "length")
    jobs = [job for job in jobs if job.request.max_new_tokens > 0]
    if jobs:
        decoding = Decoding(voices, jobs)
        for step in itertools.count():
            yield from decoding.grow(step)
            if not decoding.rows:
                return
            decoding.read()


class Decoding:
    """The rows of one group: `grow` by the token each arm chooses, `read` what has grown, and so on."""

    @torch.inference_mode()
    def __init__(self, voices: Voices, jobs: Sequence[Job[GenerateRequest]]) -> None:
        self.voices = voices
        self.arms = list({arm.name: arm for job in jobs for arm in job.arms}.values())
        self.eos = {arm.name: eos_tokens(voices.ensemble, arm) for arm in self.arms}
        self.weights: dict[tuple[int, str], list[list[float]]] = defaultdict(list)
        """The weights [T] at each token, by job and arm."""
        prompts, places = voices.unique(job.request.prompt for job in jobs)
        self.readings = Readings(voices, prompts)
        self.logits = self.readings.first
        """What each voice says after the rows it has read: [B, V]."""
        self.rows = [
            Row(job, Ending(voices.ensemble, job.request), list(job.arms), (), dict.fromkeys(voices.names, place))
            for job, place in zip(jobs, places, strict=True)
        ]

    @torch.inference_mode()
    def grow(self, step: int) -> list[Finished]:
        """Each row is replaced by one row per token that its arms choose; returns the answers finished by that."""
        finished, grown = [], []
        for row, choices in zip(self.rows, self._choices(step), strict=True):
            for token, arms in choices.items():
                child = Row(row.job, row.ending, [], (*row.tokens, token), dict(row.at))
                end = row.ending.reached(child.tokens)
                for arm in arms:
                    if token in self.eos[arm.name]:
                        finished.append(self._answer(child, arm, "eos"))
                    elif end is not None:
                        finished.append(self._answer(child, arm, end))
                    else:
                        child.arms.append(arm)
                if child.arms:
                    grown.append(child)
        self.rows = grown
        return finished

    def _choices(self, step: int) -> list[dict[int, list[Arm]]]:
        """For each row the tokens chosen next, each with the arms that choose it."""
        noise = Noise(step, self.voices.ensemble.vocab_size)
        choices: list[dict[int, list[Arm]]] = [{} for _ in self.rows]
        for arm in self.arms:
            numbers = [number for number, row in enumerate(self.rows) if arm in row.arms]
            if not numbers:
                continue
            rows = [self.rows[number] for number in numbers]
            fused, weights_Tn = arm.answer(self._logits(arm, rows))
            tokens = choose(fused, [row.job.request for row in rows], noise).tolist()
            for number, token, weights in zip(numbers, tokens, weights_Tn.T.tolist(), strict=True):
                choices[number].setdefault(token, []).append(arm)
                self.weights[self.rows[number].job.index, arm.name].append(weights)
        return choices

    def _logits(self, arm: Arm, rows: Sequence[Row]) -> dict[str, Tensor]:
        """What the voices of `arm` say of its `rows`: [n, V], float32, by role."""
        logits = {}
        for voice in self.voices.needed([arm]):
            at = [row.at[voice] for row in rows]
            whole = self.logits[voice]
            logits[voice] = (whole if at == list(range(len(whole))) else whole[at]).float()
        return self.voices.by_role(arm, logits)

    @torch.inference_mode()
    def read(self) -> None:
        """Every voice reads the last token of the rows that need it."""
        kept: dict[str, list[int]] = defaultdict(list)
        tokens: dict[str, list[Sequence[int]]] = defaultdict(list)
        for row in self.rows:
            for voice in self.voices.needed(row.arms):
                kept[voice].append(row.at[voice])
                row.at[voice] = len(tokens[voice])
                tokens[voice].append(row.tokens[-1:])
        self.logits = {voice: logits[:, -1] for voice, logits in self.readings.feed(kept, tokens).items()}

    def _answer(self, row: Row, arm: Arm, finish: str) -> Finished:
        steps = self.weights[row.job.index, arm.name]
        generated = Generated(
            tokens=row.tokens,
            text=row.ending.text(row.tokens[:-1] if finish == "eos" else row.tokens),
            weights=tuple(tuple(step[t] for step in steps) for t in range(len(arm.experts))),
            finish=finish,
        )
        return row.job.index, arm.name, generated
