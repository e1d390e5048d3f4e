"""Decoding for many arms at once: arms that have produced the same prefix are one row.

    prompt --+-- "The" --+-- " cat"  {base, static 0.5}      All arms of a request start in one branch. Arms that
             |           +-- " dog"  {proxy}                 choose different tokens split it, caches included; arms
             +-- "A"  {expert}                               that agree share all work.

Each member reads only the branches whose arms need it, and is dropped when no arm does. A branch may have a draft of
what follows (`drafting.py`). An arm accepts exactly those tokens of it that it would have chosen one by one.

Shapes: B rows of one member, t positions read of each, n places where one arm chooses, V vocabulary, T experts.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from proxytune.engines.hf.batching import Pending, Queue
from proxytune.engines.hf.branch import Branch, Place
from proxytune.engines.hf.drafting import Drafting
from proxytune.engines.hf.kv import KVStates
from proxytune.engines.hf.meter import Meter
from proxytune.engines.hf.sampling import Noise, choose
from proxytune.engines.hf.stopping import StopConditions
from proxytune.engines.hf.tracing import Tracer
from proxytune.engines.requests import Generated, GenerateRequest
from proxytune.fusion.arm import Arm
from proxytune.models.distinct import DistinctMembers
from proxytune.models.static_state import StaticStates

Finished = tuple[int, str, Generated]
UNDEFINED = -1
"""Replaces a token if an arm's logits are NaN, +inf or all -inf."""
ENTRY = 1.0
"""Waiting requests enter once the free rows have cost as much as this many passes of a whole batch.

An entry costs about as much: the members read the new prompts separately, and every cache is copied.
"""


class Choice(NamedTuple):
    """An arm, the tokens that it adds, and why its answer ends with them; None if it continues."""

    arm: Arm
    tokens: tuple[int, ...]
    end: str | None


def generate_all(
    members: DistinctMembers,
    arms: Sequence[Arm],
    queue: Queue[GenerateRequest],
    draft: int | None,
    meter: Meter,
    static: StaticStates | None = None,
) -> Iterator[tuple[int, str, Generated]]:
    """`arms` answer every request in the queue; requests enter as others finish. Yields answers as they finish.

    `draft` is the number of tokens that a draft may have (0: no drafts); None: as many as pay. `meter` counts them.
    `static` as in `KVStates`.
    """
    decoding = Decoding(members, arms, draft, meter, static)
    while True:
        if queue.waiting and decoding.has_room(queue):
            yield from decoding.admit(queue.take())
        if not decoding.branches:
            return
        yield from decoding.grow()
        decoding.read()


class Decoding:
    """Alternates two steps: branches `grow` by the tokens that arms choose; members `read` these tokens and a draft."""

    def __init__(
        self,
        members: DistinctMembers,
        arms: Sequence[Arm],
        draft: int | None,
        meter: Meter,
        static: StaticStates | None,
    ) -> None:
        self.members = members
        self.arms = arms
        self.needed = {arm.name: members.needed(arm.roles) for arm in arms}
        """The roles that must run for each arm."""
        self.ends = {arm.name: set(members.ensemble.ends(arm.roles)) for arm in arms}
        self.weights: dict[tuple[int, str], list[list[float]]] = defaultdict(list)
        """The weights [T] at each token, by request and arm."""
        self.tracer = Tracer(members)
        self.states = KVStates(members.ensemble, static)
        self.meter = meter
        self.drafting = Drafting(members, self.states, self.ends, draft)
        self.noise = Noise(members.ensemble.vocab_size)
        self.logits: dict[str, Tensor] = {}
        """The logits at the places of the rows that each member has read, by role: [B, t, V]."""
        self.branches: list[Branch] = []
        self.idle = 0
        """The number of free rows, summed over all passes since requests last entered."""
        self.answers: dict[int, list[tuple[int, ...]]] = defaultdict(list)
        """The tokens of finished answers to the requests that other arms are still answering."""

    def has_room(self, queue: Queue[GenerateRequest]) -> bool:
        """Whether waiting requests enter before the next pass; called once per pass."""
        self.idle += queue.room
        if self.branches and (self.idle < ENTRY * queue.size or not self.states.joinable):
            return False
        self.idle = 0
        return True

    @torch.inference_mode()
    def admit(self, requests: Sequence[Pending[GenerateRequest]]) -> list[Finished]:
        """The members read the prompts. Requests for 0 tokens are answered at once; the others become branches."""
        new = [Branch(one, self._stops(one), list(one.arms)) for one in requests]
        finished = [self._answer(branch, (), arm, "length") for branch in new if branch.is_full for arm in branch.arms]
        new = [branch for branch in new if not branch.is_full]
        if new:
            needed = self.members.needed(role for branch in new for arm in branch.arms for role in arm.roles)
            before = {role: self.states.rows(role) for role in needed}
            read, places = self.states.prefill((branch.pending.request.prompt for branch in new), needed)
            for branch, place in zip(new, places, strict=True):
                branch.row = {role: rows + place for role, rows in before.items()}
            self.logits |= {role: _stacked(self.logits.get(role), logits) for role, logits in read.items()}
        self.branches += new
        return finished

    @torch.inference_mode()
    def grow(self) -> list[Finished]:
        """Replaces each branch by one per prefix that its arms choose; returns the answers that this finishes."""
        finished: list[Finished] = []
        grown: list[Branch] = []
        for branch, chosen in zip(self.branches, self._choices(), strict=True):
            children: dict[tuple[int, ...], Branch] = {}
            for arm, tokens, end in chosen:
                path = branch.tokens + tokens
                if end is not None:
                    finished.append(self._answer(branch, path, arm, end))
                    continue
                forgotten = branch.size - len(tokens)
                child = Branch(branch.pending, branch.stops, [], path, branch.row, forgotten)
                children.setdefault(tokens, child).arms.append(arm)
            grown += children.values()
        self.branches = grown
        return finished

    def _choices(self) -> list[list[Choice]]:
        """The choices of each branch's arms."""
        choices: list[list[Choice]] = [[] for _ in self.branches]
        branches_of: dict[str, list[int]] = defaultdict(list)
        for number, branch in enumerate(self.branches):
            for arm in branch.arms:
                branches_of[arm.name].append(number)
        self.tracer.look(self.logits)
        for arm in self.arms:
            numbers = branches_of[arm.name]
            if not numbers:
                continue
            places = [place for number in numbers for place in self.branches[number].places]
            logits = self._logits(arm, places)
            with self.members.ensemble.clock.time(("rule", arm.name), next(iter(logits.values())).device):
                fused, weights_Tn = arm.answer(logits)
            steps = [(place.branch.pending.request, place.step) for place in places]
            tokens = zip(choose(fused, steps, self.noise).tolist(), fused.amax(-1).tolist(), strict=True)
            ids = [token if math.isfinite(highest) else UNDEFINED for token, highest in tokens]
            weights = weights_Tn.T.tolist()
            taken: list[int] = []
            start = 0
            for number in numbers:
                branch = self.branches[number]
                choice, used = self._walk(branch, arm, ids[start : start + branch.size])
                choices[number].append(choice)
                self.weights[branch.pending.index, arm.name] += weights[start : start + used]
                taken += range(start, start + used)
                start += branch.size
            self.tracer.note(arm, places, taken, fused, ids)
        self._count(choices)
        return choices

    def _count(self, choices: Sequence[Sequence[Choice]]) -> None:
        """Counts drafted and accepted tokens."""
        for branch, chosen in zip(self.branches, choices, strict=True):
            self.meter.passes += bool(branch.tokens)
            if branch.drafter is not None:
                accepted = [_accepted(branch, tokens) for _, tokens, _ in chosen]
                self.drafting.note(branch, accepted)
                self.meter.drafted += len(branch.draft)
                self.meter.accepted += max(accepted)

    def _walk(self, branch: Branch, arm: Arm, ids: Sequence[int]) -> tuple[Choice, int]:
        """The arm's choice, from the tokens that it chooses at the branch's places, and the number of places used.

        It moves on to the next place while it chooses the drafted token.
        """
        taken: tuple[int, ...] = ()
        for position, token in enumerate(ids):
            if token == UNDEFINED:
                return Choice(arm, taken, "undefined"), position + 1
            taken += (token,)
            stop = self._end(branch, arm, branch.tokens + taken)
            if stop is not None or taken != branch.draft[: len(taken)]:
                return Choice(arm, taken, stop), position + 1
        raise AssertionError("a draft that an arm takes as a whole ends, or has a place after it")

    def _end(self, branch: Branch, arm: Arm, tokens: tuple[int, ...]) -> str | None:
        """Why the arm's answer ends with the last of `tokens`; None if it continues."""
        return "eos" if tokens[-1] in self.ends[arm.name] else branch.stops[arm.base].reached(tokens)

    def _logits(self, arm: Arm, places: Sequence[Place]) -> dict[str, Tensor]:
        """The logits of the arm's roles at its `places`: [n, V], float32, by role."""
        logits = {}
        for role in self.needed[arm.name]:
            positions = self.logits[role].shape[1]
            rows = [place.branch.row[role] * positions + place.position for place in places]
            whole = self.logits[role].flatten(0, 1)
            logits[role] = (whole if rows == list(range(len(whole))) else whole[rows]).float()
        return self.members.by_role(arm.roles, logits)

    @torch.inference_mode()
    def read(self) -> None:
        """Every member reads the last token of the branches that need it, and a draft of what follows."""
        kept: dict[str, list[int]] = defaultdict(list)
        forgotten: dict[str, list[int]] = defaultdict(list)
        for branch in self.branches:
            before, branch.row = branch.row, {}
            for role in dict.fromkeys(role for arm in branch.arms for role in self.needed[arm.name]):
                branch.row[role] = len(kept[role])
                kept[role].append(before[role])
                forgotten[role].append(branch.forgotten)
        self.states.keep(kept, forgotten)
        self.noise = Noise(self.members.ensemble.vocab_size)
        leading = {branch: expert for branch in self.branches if (expert := self._leading(branch)) is not None}
        self.logits = self.drafting.read(self.branches, self.answers, leading, self.noise)

    def _leading(self, branch: Branch) -> str | None:
        """The expert with the largest weight at the last token of the branch, for its first arm that has experts."""
        for arm in branch.arms:
            if arm.experts:
                weights = self.weights[branch.pending.index, arm.name][-1]
                return self.members.of[arm.experts[max(range(len(weights)), key=weights.__getitem__)]]
        return None

    def _stops(self, pending: Pending[GenerateRequest]) -> dict[str, StopConditions]:
        request, found = pending.request, dict[tuple[int, ...], StopConditions]()
        for prompt in {request.prompt.of(arm.base) for arm in pending.arms}:
            found[prompt] = StopConditions(self.members.ensemble.tokenizer, request, prompt)
        return {arm.base: found[request.prompt.of(arm.base)] for arm in pending.arms}

    def _answer(self, branch: Branch, tokens: tuple[int, ...], arm: Arm, finish: str) -> Finished:
        index = branch.pending.index
        self.answers[index].append(tokens)
        self.drafting.learn(branch.pending.request, tokens)
        steps = self.weights.pop((index, arm.name), [])
        generated = Generated(
            tokens=tokens,
            text=branch.stops[arm.base].text(tokens[:-1] if finish == "eos" else tokens),
            weights=tuple(tuple(step[t] for step in steps) for t in range(len(arm.experts))),
            finish=finish,
            trace=self.tracer.trace(branch.pending, arm, len(tokens)),
        )
        return index, arm.name, generated


def _stacked(present: Tensor | None, new: Tensor) -> Tensor:
    """Logits [B, t, V] of the present rows and then [B', 1, V] of new ones, as [B + B', t, V]."""
    if present is None:
        return new
    return torch.cat([present, torch.nn.functional.pad(new, (0, 0, 0, present.shape[1] - 1))])


def _accepted(branch: Branch, tokens: tuple[int, ...]) -> int:
    """The number of drafted tokens that an arm accepts when it takes `tokens`."""
    return len(tokens) if tokens == branch.draft[: len(tokens)] else len(tokens) - 1
