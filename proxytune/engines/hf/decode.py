"""Decoding for many arms at once: arms that have produced the same prefix are one row.

    prompt --+-- "The" --+-- " cat"  {base, static 0.5}      All arms of a request start in one branch. Arms that
             |           +-- " dog"  {proxy}                 choose different tokens split it, caches included; arms
             +-- "A"  {expert}                               that agree share all work.

Each member reads only the branches that some arm needs it for, and leaves when none does.

Shapes: B rows of one member, n branches of one arm, V vocabulary, T experts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from proxytune.engines.hf.batching import Pending, Queue
from proxytune.engines.hf.kv import KVStates
from proxytune.engines.hf.sampling import Noise, choose
from proxytune.engines.hf.stopping import StopConditions
from proxytune.engines.hf.tracing import Tracer
from proxytune.engines.requests import Generated, GenerateRequest
from proxytune.fusion.arm import Arm
from proxytune.models.distinct import DistinctMembers

Finished = tuple[int, str, Generated]
UNDEFINED = -1
"""Stands in place of a token where an arm's logits are NaN, +inf or all -inf."""
ENTRY = 0.25
"""The share of a batch that must have left before waiting requests enter: entering copies every cache.

Measured (`scripts/benchmark.py`, refill): with answers of ragged length it saves about a fifth of the time.
"""


@dataclass
class Branch:
    """One prefix of a request's answers, and the arms that have produced it."""

    pending: Pending[GenerateRequest]
    stops: dict[str, StopConditions]
    """By the base of an arm; bases that read the same prompt have the same."""
    arms: list[Arm]
    tokens: tuple[int, ...] = ()
    row: dict[str, int] = field(default_factory=dict)
    """The row of this branch in the KV state of each member, by role."""

    @property
    def is_full(self) -> bool:
        """Whether its answers may have no more tokens."""
        return len(self.tokens) == self.pending.request.max_new_tokens


def generate_all(
    members: DistinctMembers, arms: Sequence[Arm], queue: Queue[GenerateRequest]
) -> Iterator[tuple[int, str, Generated]]:
    """`arms` answer every request of the queue, which enter as others leave; yields answers as they are finished."""
    decoding = Decoding(members, arms)
    while True:
        yield from decoding.admit(queue.take(at_least=decoding.entry(queue.size)))
        if not decoding.branches:
            return
        yield from decoding.grow()
        decoding.read()


class Decoding:
    """Branches that `grow` by the token each arm chooses; then the members `read` those tokens, and so on."""

    def __init__(self, members: DistinctMembers, arms: Sequence[Arm]) -> None:
        self.members = members
        self.arms = arms
        self.ends = {arm.name: set(members.ensemble.ends(arm.roles)) for arm in arms}
        self.weights: dict[tuple[int, str], list[list[float]]] = defaultdict(list)
        """The weights [T] at each token, by request and arm."""
        self.tracer = Tracer(members)
        self.states = KVStates(members.ensemble)
        self.logits: dict[str, Tensor] = {}
        """The logits after the rows that each member has read, by role: [B, V]."""
        self.branches: list[Branch] = []

    def entry(self, size: int) -> int:
        """How many of `size` requests must have left before others enter."""
        if not self.branches:
            return 1
        return max(1, int(size * ENTRY)) if self.states.joinable else size + 1

    @torch.inference_mode()
    def admit(self, requests: Sequence[Pending[GenerateRequest]]) -> list[Finished]:
        """The members read the prompts; requests for no tokens are answered at once, the others become branches."""
        new = [Branch(one, self._stops(one), list(one.arms)) for one in requests]
        finished = [self._answer(branch, arm, "length") for branch in new if branch.is_full for arm in branch.arms]
        new = [branch for branch in new if not branch.is_full]
        if new:
            needed = self.members.needed(role for branch in new for arm in branch.arms for role in arm.roles)
            before = {role: self.states.rows(role) for role in needed}
            read, places = self.states.prefill((branch.pending.request.prompt for branch in new), needed)
            for branch, place in zip(new, places, strict=True):
                branch.row = {role: rows + place for role, rows in before.items()}
            for role, logits in read.items():
                present = [self.logits[role]] if role in self.logits else []
                self.logits[role] = torch.cat([*present, logits[:, -1]])
        self.branches += new
        return finished

    @torch.inference_mode()
    def grow(self) -> list[Finished]:
        """Each branch is replaced by one per token that its arms choose; returns the answers finished by that."""
        finished, grown = [], []
        for branch, choices in zip(self.branches, self._choices(), strict=True):
            finished += [self._answer(branch, arm, "undefined") for arm in choices.pop(UNDEFINED, ())]
            for token, arms in choices.items():
                child = Branch(branch.pending, branch.stops, [], (*branch.tokens, token), dict(branch.row))
                ends = {stop: stop.reached(child.tokens) for stop in {child.stops[arm.base] for arm in arms}}
                for arm in arms:
                    end = ends[child.stops[arm.base]]
                    if token in self.ends[arm.name]:
                        finished.append(self._answer(child, arm, "eos"))
                    elif end is not None:
                        finished.append(self._answer(child, arm, end))
                    else:
                        child.arms.append(arm)
                if child.arms:
                    grown.append(child)
        self.branches = grown
        return finished

    def _choices(self) -> list[dict[int, list[Arm]]]:
        """For each branch the tokens chosen next, or UNDEFINED, each with the arms that choose it."""
        noise = Noise(self.members.ensemble.vocab_size)
        choices: list[dict[int, list[Arm]]] = [{} for _ in self.branches]
        self.tracer.look(self.logits)
        for arm in self.arms:
            numbers = [number for number, branch in enumerate(self.branches) if arm in branch.arms]
            if not numbers:
                continue
            branches = [self.branches[number] for number in numbers]
            logits = self._logits(arm, branches)
            with self.members.ensemble.clock.time(("rule", arm.name), self.members.ensemble.device):
                fused, weights_Tn = arm.answer(logits)
            steps = [(branch.pending.request, len(branch.tokens)) for branch in branches]
            tokens = choose(fused, steps, noise).where(fused.amax(-1).isfinite(), UNDEFINED)
            self.tracer.note(arm, branches, fused, tokens)
            for number, token, weights in zip(numbers, tokens.tolist(), weights_Tn.T.tolist(), strict=True):
                choices[number].setdefault(token, []).append(arm)
                self.weights[self.branches[number].pending.index, arm.name].append(weights)
        return choices

    def _logits(self, arm: Arm, branches: Sequence[Branch]) -> dict[str, Tensor]:
        """The logits of the arm's roles after its `branches`: [n, V], float32, by role."""
        logits = {}
        for role in self.members.needed(arm.roles):
            rows = [branch.row[role] for branch in branches]
            whole = self.logits[role]
            logits[role] = (whole if rows == list(range(len(whole))) else whole[rows]).float()
        return self.members.by_role(arm.roles, logits)

    @torch.inference_mode()
    def read(self) -> None:
        """Every member reads the last token of the branches that need it."""
        kept: dict[str, list[int]] = defaultdict(list)
        tokens: dict[str, list[Sequence[int]]] = defaultdict(list)
        for branch in self.branches:
            for role in self.members.needed(role for arm in branch.arms for role in arm.roles):
                kept[role].append(branch.row[role])
                branch.row[role] = len(tokens[role])
                tokens[role].append(branch.tokens[-1:])
        self.logits = {role: logits[:, -1] for role, logits in self.states.extend(kept, tokens).items()}

    def _stops(self, pending: Pending[GenerateRequest]) -> dict[str, StopConditions]:
        request, found = pending.request, dict[tuple[int, ...], StopConditions]()
        for prompt in {request.prompt.of(arm.base) for arm in pending.arms}:
            found[prompt] = StopConditions(self.members.ensemble.tokenizer, request, prompt)
        return {arm.base: found[request.prompt.of(arm.base)] for arm in pending.arms}

    def _answer(self, branch: Branch, arm: Arm, finish: str) -> Finished:
        steps = self.weights.pop((branch.pending.index, arm.name), [])
        generated = Generated(
            tokens=branch.tokens,
            text=branch.stops[arm.base].text(branch.tokens[:-1] if finish == "eos" else branch.tokens),
            weights=tuple(tuple(step[t] for step in steps) for t in range(len(arm.experts))),
            finish=finish,
            trace=self.tracer.trace(branch, arm),
        )
        return branch.pending.index, arm.name, generated
