"""Decoding for many arms at once: arms that have produced the same prefix are one row.

    prompt --+-- "The" --+-- " cat"  {base, static 0.5}      All arms of a request start in one row. Arms that choose
             |           +-- " dog"  {proxy}                 different tokens split the row, caches included; arms
             +-- "A"  {expert}                               that agree go on sharing all work.

Each voice reads only the rows that some arm needs it for, and leaves when none does.

Shapes: B rows of one voice, n rows of one arm, V vocabulary, T experts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from proxytune.engines.hf.batching import Job, Queue
from proxytune.engines.hf.distinct import Voices
from proxytune.engines.hf.kv import Readings
from proxytune.engines.hf.sampling import Noise, choose
from proxytune.engines.hf.stopping import Ending, eos_tokens
from proxytune.engines.requests import Generated, GenerateRequest
from proxytune.fusion.arm import Arm

Finished = tuple[int, str, Generated]
ENTRY = 0.25
"""The share of a batch that must have left before waiting requests enter: entering copies every cache.

Measured (`scripts/benchmark.py`, refill): with answers of ragged length it saves about a fifth of the time.
"""


@dataclass
class Row:
    """One prefix of an answer, and the arms that have produced it."""

    job: Job[GenerateRequest]
    ending: Ending
    arms: list[Arm]
    tokens: tuple[int, ...] = ()
    at: dict[str, int] = field(default_factory=dict)
    """The row's place in each voice's reading."""


def generate_all(voices: Voices, queue: Queue[GenerateRequest]) -> Iterator[Finished]:
    """Every job's arms answer it; answers come as they are finished, and waiting jobs enter as others leave."""
    decoding = Decoding(voices)
    while True:
        yield from decoding.admit(queue.take(at_least=decoding.entry(queue.size)))
        if not decoding.rows:
            return
        yield from decoding.grow()
        decoding.read()


class Decoding:
    """Rows that `grow` by the token each arm chooses; then the voices `read` what has grown, and so on."""

    def __init__(self, voices: Voices) -> None:
        self.voices = voices
        self.eos = {arm.name: eos_tokens(voices.ensemble, arm) for arm in voices.arms}
        self.weights: dict[tuple[int, str], list[list[float]]] = defaultdict(list)
        """The weights [T] at each token, by job and arm."""
        self.readings = Readings(voices.ensemble)
        self.logits: dict[str, Tensor] = {}
        """What each voice says after the rows it has read: [B, V]."""
        self.rows: list[Row] = []

    def entry(self, size: int) -> int:
        """How many of `size` jobs must have left before others enter."""
        if not self.rows:
            return 1
        return max(1, int(size * ENTRY)) if self.readings.joinable else size + 1

    @torch.inference_mode()
    def admit(self, jobs: Sequence[Job[GenerateRequest]]) -> list[Finished]:
        """Each job becomes a row, its prompt read; jobs that want no tokens are answered at once."""
        rows = [Row(job, Ending(self.voices.ensemble, job.request), list(job.arms)) for job in jobs]
        finished = [self._answer(row, arm, "length") for row in rows if row.ending.at_once for arm in row.arms]
        rows = [row for row in rows if not row.ending.at_once]
        if rows:
            prompts, places = self.voices.unique(row.job.request.prompt for row in rows)
            needed = self.voices.needed(arm for row in rows for arm in row.arms)
            for row, place in zip(rows, places, strict=True):
                row.at = {voice: self.readings.rows(voice) + place for voice in needed}
            for voice, logits in self.readings.start(prompts, needed).items():
                present = [self.logits[voice]] if voice in self.logits else []
                self.logits[voice] = torch.cat([*present, logits[:, -1]])
        self.rows += rows
        return finished

    @torch.inference_mode()
    def grow(self) -> list[Finished]:
        """Each row is replaced by one row per token that its arms choose; returns the answers finished by that."""
        finished, grown = [], []
        for row, choices in zip(self.rows, self._choices(), strict=True):
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

    def _choices(self) -> list[dict[int, list[Arm]]]:
        """For each row the tokens chosen next, each with the arms that choose it."""
        noise = Noise(self.voices.ensemble.vocab_size)
        choices: list[dict[int, list[Arm]]] = [{} for _ in self.rows]
        for arm in self.voices.arms:
            numbers = [number for number, row in enumerate(self.rows) if arm in row.arms]
            if not numbers:
                continue
            rows = [self.rows[number] for number in numbers]
            fused, weights_Tn = arm.answer(self._logits(arm, rows))
            tokens = choose(fused, [(row.job.request, len(row.tokens)) for row in rows], noise).tolist()
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
        steps = self.weights.pop((row.job.index, arm.name), [])
        generated = Generated(
            tokens=row.tokens,
            text=row.ending.text(row.tokens[:-1] if finish == "eos" else row.tokens),
            weights=tuple(tuple(step[t] for step in steps) for t in range(len(arm.experts))),
            finish=finish,
        )
        return row.job.index, arm.name, generated
