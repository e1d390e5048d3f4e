"""The answers of all arms to one task: the first arm that needs them computes all, so each model runs once."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from proxytune.console import progress_bar
from proxytune.engines.requests import Answer, Generated, GenerateRequest, Request, Scored, ScoreRequest
from proxytune.errors import UserError, error_line
from proxytune.experiment.answers.keys import Keys
from proxytune.experiment.answers.stopping import Stopping
from proxytune.experiment.answers.store import AnswerStore
from proxytune.experiment.answers.tracing import NO_TRACES, Tracing, lacks_trace
from proxytune.fusion.arm import Arm
from proxytune.models.facts import Members
from proxytune.record import TaskCosts

log = logging.getLogger(__name__)
BLOCK, REMOTE_BLOCK = 128, 32
"""Requests that are answered and stored together: a few batches of the engine, or fewer where the engine says so
(`portion`) and where an endpoint, which may be paid for, answers. It is the most that a killed run loses, since answers
are stored only with their whole block: see `SharedAnswers`."""


class Engine(Protocol):
    """What answers requests, such as `HFEngine`. Yields (request index, arm name, answer) as answers are finished."""

    ensemble: Members[Any]

    def score(self, requests: Sequence[ScoreRequest], arms: Sequence[Arm]) -> Iterator[tuple[int, str, Scored]]: ...

    def generate(
        self, requests: Sequence[GenerateRequest], arms: Sequence[Arm]
    ) -> Iterator[tuple[int, str, Generated]]: ...


class Watch(Protocol):
    """What looks on while answers come in, such as `Running`. It raises nothing."""

    def expect(self, instances: Sequence[Any], keys: Sequence[Mapping[str, str]]) -> None:
        """lm-eval's instances, and for each the key of its answer by every arm."""

    def answered(self, key: str, answer: Answer, *, computed: bool) -> None:
        """An answer was computed, or found in the store."""


class LazyEngine:
    """An engine whose models are loaded once they are needed: not where every answer is in the store."""

    def __init__(
        self, ensemble: Members[Any], make: Callable[[], Engine], facts: Mapping[str, Any] | None = None
    ) -> None:
        """`ensemble` is what is known of the models before `make` loads them, `facts` what is known of the engine."""
        self.ensemble = ensemble
        self.facts = facts
        self._make = make
        self._engine: Engine | None = None

    def load(self) -> Engine:
        if self._engine is None:
            self._engine = self._make()
        return self._engine

    def score(self, requests: Sequence[ScoreRequest], arms: Sequence[Arm]) -> Iterator[tuple[int, str, Scored]]:
        return self.load().score(requests, arms)

    def generate(
        self, requests: Sequence[GenerateRequest], arms: Sequence[Arm]
    ) -> Iterator[tuple[int, str, Generated]]:
        return self.load().generate(requests, arms)

    def portion(self, requests: Sequence[Request], arms: Sequence[Arm]) -> int:
        return getattr(self.load(), "portion", lambda requests, arms: len(requests))(requests, arms)

    def take_costs(self) -> TaskCosts:
        """As `HFEngine.take_costs`; nothing where nothing was loaded."""
        return getattr(self._engine, "take_costs", TaskCosts)()

    @property
    def loaded(self) -> Engine | None:
        """None where nothing was loaded."""
        return self._engine

    @property
    def batch_size(self) -> int | None:
        """None where nothing was loaded."""
        return getattr(self._engine, "batch_size", None)

    @property
    def drafts(self) -> bool:
        """Whether the engine, which is loaded before it answers, makes use of drafts."""
        return getattr(self.load(), "drafts", False)


class ArmFailed(Exception):
    """An arm raised an error that is not the user's to fix; `str` of this is the error in one line."""


class Failed(NamedTuple):
    """In place of an answer: the error, in one line, that an arm raised at this one request."""

    error: str


class KeyedRequest(NamedTuple):
    """A request, and the key of its answer by each arm; arms that answer like an earlier one are left out."""

    request: Request
    keys: dict[str, str]


class SharedAnswers:
    """Answers of all arms to all requests of a task: from the store, or computed block by block and stored.

    Arms that answer alike (such as the task's expert and "expert:<name>") and equal requests are computed once.

    The task, the arms and the models alone decide which requests a block holds, never the clock, and a block's answers
    are stored together: the last digits of batched matrix products depend on which rows share the batch, so a resumed
    run gives the very numbers of an uninterrupted one only if it continues with whole blocks.
    """

    def __init__(
        self,
        engine: Engine,
        arms: Sequence[Arm],
        store: AnswerStore,
        label: str = "",
        progress: bool | None = None,
        tracing: Tracing = NO_TRACES,
        watch: Watch | None = None,
    ) -> None:
        """`label` is shown before the progress bar; `tracing` says which requests will ask for a trace."""
        self.engine = engine
        self.arms = tuple(arms)
        self.store = store
        self.label = label
        self.progress = progress
        self.tracing = tracing
        self.watch = watch
        self.keys = Keys(engine.ensemble, arms, getattr(engine, "facts", None))
        self.computed = 0
        self.read = 0
        """Answers that the store had."""
        self._answers: dict[str, Answer] = {}
        self._at_work: set[str] = set()
        """Keys of the finished answers of the block at work."""
        self._failed: dict[str, str] = {}
        """The error of each arm that failed, by the hash of how it answers."""
        self._failed_items: dict[str, Failed] = {}
        """The same by the key of the answer, where the arm has answered others."""
        self.tokens: dict[Hashable, array[int]] = {}
        """What the tokenizer makes of the task's texts, the same for all arms."""
        self._able: set[str] = set()
        """Names of the arms that have answered anything."""

    @property
    def ensemble(self) -> Members[Any]:
        return self.engine.ensemble

    @property
    def block(self) -> int:
        """Requests of a block."""
        return REMOTE_BLOCK if any(self.ensemble[role].remote for role in self.roles) else BLOCK

    @property
    def roles(self) -> tuple[str, ...]:
        """The members that some arm needs."""
        return tuple(dict.fromkeys(role for arm in self.arms for role in arm.roles))

    def answer(self, arm: Arm, requests: Sequence[Request], instances: Sequence[Any] = ()) -> list[Any]:
        """The answers of `arm` to `requests` (all to be scored, or all to be generated), in order.

        `instances` are lm-eval's, one for each request, for whoever watches; empty: nothing is watched.

        A request at which the arm fails even alone, without other arms and requests, has a `Failed` for an answer.
        Raises ArmFailed if the arm fails from the first block on. Other arms are answered nevertheless.
        """
        keys = [self.keys.of(arm, request) for request in requests]
        if not self._has_failed(arm.name) and not all(self._is_done(key) for key in keys):
            self._complete(requests, instances)
        if self._has_failed(arm.name):
            raise ArmFailed(self._failed[self.keys.of_arm[arm.name]])
        return [self._answers[key] if key in self._answers else self._failed_items[key] for key in keys]

    def _is_done(self, key: str) -> bool:
        return key in self._answers or key in self._failed_items

    def _complete(self, requests: Sequence[Request], instances: Sequence[Any]) -> None:
        """Computes what is missing of every arm's answers to `requests`."""
        keys = [{arm.name: self.keys.of(arm, request) for arm in self.arms} for request in requests]
        keyed = _keyed(requests, keys)
        found = self.store.get([key for one in keyed for key in one.keys.values() if key not in self._answers])
        if self.tracing.missing == "recompute":
            found = _with_their_traces(keyed, found, self.block)
        self._answers |= found
        self.read += len(found)
        self._able |= {name for one in keyed for name, key in one.keys.items() if key in self._answers}
        missing = sum(not self._is_done(key) for one in keyed for key in one.keys.values())
        if missing and isinstance(self.engine, LazyEngine):
            self.engine.load()
        self._expect(instances, keys, found)
        if missing:
            with progress_bar(self.label, missing, self.progress) as advance, Stopping() as stopping:
                self._compute_all(keyed, advance, stopping)
        self._fail_undefined(keyed)

    def _expect(self, instances: Sequence[Any], keys: Sequence[Mapping[str, str]], found: Mapping[str, Answer]) -> None:
        """Tells the watcher what is requested, once models are loaded, and which answers the store had."""
        if self.watch and instances:
            self.watch.expect(instances, keys)
            for key, answer in found.items():
                self.watch.answered(key, answer, computed=False)

    def _compute_all(self, keyed: Sequence[KeyedRequest], advance: Callable[[], None], stopping: Stopping) -> None:
        """Block by block. A KeyboardInterrupt says how many answers are stored, and how many finished ones are lost."""

        def step() -> None:
            advance()
            stopping.step()

        try:
            for block in self._blocks(keyed):
                stopping.begin(sum(not self._is_done(key) for one in block for key in one.keys.values()))
                self._at_work.clear()
                self._compute(block, step)
                stopping.end()
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(self._kept({key for one in keyed for key in one.keys.values()})) from stop

    def _kept(self, keys: set[str]) -> str:
        """How many answers the store has, counted anew: a Ctrl-C may come between storing and noting it."""
        stored = set() if self.store.path is None else self.store.get(list(keys)).keys()
        lost = (self._answers.keys() | self._at_work) & keys - stored - self._failed_items.keys()
        return f"{self.label}: {len(stored)} of {len(keys)} answers are stored, {len(lost)} finished ones are lost"

    def _blocks(self, keyed: Sequence[KeyedRequest]) -> Iterator[Sequence[KeyedRequest]]:
        """What is answered and stored together, including what is stored already."""
        portion = getattr(self.engine, "portion", None)
        for start in range(0, len(keyed), self.block):
            block = keyed[start : start + self.block]
            while block:
                size = len(block) if portion is None else portion([one.request for one in block], self.arms)
                yield block[:size]
                block = block[size:]

    def _defined(self, requests: Sequence[KeyedRequest], answers: Mapping[str, Answer]) -> dict[str, Answer]:
        """Those of `answers` that hold no NaN or infinity; the others become failed items."""
        may = {arm.name: arm.rule is not None or self.ensemble[arm.base].remote for arm in self.arms}
        masks = {key: may[name] for one in requests for name, key in one.keys.items()}
        why = {key: answer.undefined(masks[key]) for key, answer in answers.items()}
        self._failed_items |= {key: Failed(reason) for key, reason in why.items() if reason is not None}
        return {key: answer for key, answer in answers.items() if why[key] is None}

    def _fail_undefined(self, keyed: Sequence[KeyedRequest]) -> None:
        """An arm whose answers are all undefined has failed; some are reported item by item."""
        for arm in self.arms:
            keys = [one.keys[arm.name] for one in keyed if arm.name in one.keys]
            undefined = [self._failed_items[key].error for key in keys if key in self._failed_items]
            if undefined and arm.name not in self._able:
                self._failed.setdefault(self.keys.of_arm[arm.name], f"no finite answer: {undefined[0]}")
            elif undefined:
                log.warning(
                    "%s: arm %s has no valid answer to %d of %d requests (%s)",
                    self.label,
                    arm.name,
                    len(undefined),
                    len(keys),
                    undefined[0],
                )

    def _compute(self, block: Sequence[KeyedRequest], advance: Callable[[], None]) -> None:
        """What is missing in a block: one pass of the engine, unless arms have been added since a part was stored."""
        passes: dict[tuple[str, ...], list[KeyedRequest]] = {}
        for one in block:
            lacking = tuple(arm for arm, key in one.keys.items() if not self._is_done(key))
            passes.setdefault(lacking, []).append(one)
        for names, requests in passes.items():
            self._pass(requests, [name for name in names if not self._has_failed(name)], advance)

    def _pass(self, requests: Sequence[KeyedRequest], names: Sequence[str], advance: Callable[[], None]) -> None:
        """One pass of the engine. If it fails, each arm is tried alone, so that one failing arm stops no other."""
        if not names:
            return
        try:
            answers = self._answered(requests, names, advance)
        except UserError:
            raise
        except Exception as error:
            if len(names) > 1:
                log.warning(
                    "%s: %s with %d arms together; trying each alone", self.label, error_line(error), len(names)
                )
                for name in names:
                    self._pass(requests, [name], advance)
                return
            answers = self._one_by_one(requests, names[0], error, advance)
        answers = self._defined(requests, answers)
        self.store.note(self._asked(requests, answers))
        self.store.put(answers)
        self._answers |= answers
        self._able |= {name for name in names if any(one.keys.get(name) in answers for one in requests)}
        self.computed += len(answers)

    def _one_by_one(
        self, requests: Sequence[KeyedRequest], name: str, error: Exception, advance: Callable[[], None]
    ) -> dict[str, Answer]:
        """The answers of an arm that failed with `error` to each request alone; it has failed if there are none."""
        answers: dict[str, Answer] = {}
        failed: dict[str, Failed] = {}
        for one in requests:
            try:
                answers |= self._answered([one], [name], advance)
            except UserError:
                raise
            except Exception as alone:
                failed[one.keys[name]] = Failed(error_line(alone))
        if answers or name in self._able:
            message = "%s: arm %s failed at %d of %d requests, which are left out"
            log.error(message, self.label, name, len(failed), len(requests), exc_info=error)
            self._failed_items |= failed
        else:
            log.error("%s: arm %s failed and is left out", self.label, name, exc_info=error)
            self._failed[self.keys.of_arm[name]] = error_line(error)
        return answers

    def _answered(
        self, requests: Sequence[KeyedRequest], names: Sequence[str], advance: Callable[[], None]
    ) -> dict[str, Answer]:
        """The engine's answers by key, once it has given all of them."""
        answers = {}
        for i, name, answer in self._run(self._with_drafts(requests), names):
            key = requests[i].keys[name]
            answers[key] = answer
            self._at_work.add(key)
            advance()
            if self.watch:
                self.watch.answered(key, answer, computed=True)
        return answers

    def _asked(self, requests: Sequence[KeyedRequest], answers: Collection[str]) -> dict[str, str]:
        """What each of `answers` was asked, by key; scored ones are no draft of another."""
        keys = {key: one.request for one in requests for key in one.keys.values() if key in answers}
        return {key: self.keys.asked(one) for key, one in keys.items() if isinstance(one, GenerateRequest)}

    def _with_drafts(self, requests: Sequence[KeyedRequest]) -> Sequence[Request]:
        """The requests, each with what the store has of other arms' answers to it.

        Of this run's arms only those count that had been answered before: another process may store some meanwhile.
        """
        plain = [one.request for one in requests if isinstance(one.request, GenerateRequest)]
        if not plain or not getattr(self.engine, "drafts", False):
            return [one.request for one in requests]
        asked = [self.keys.asked(one) for one in plain]
        own = {key for one in requests for key in one.keys.values()} - self._answers.keys()
        found = self.store.similar(asked, own)
        return [replace(one, drafts=found[key]) for one, key in zip(plain, asked, strict=True)]

    def _has_failed(self, name: str) -> bool:
        return self.keys.of_arm[name] in self._failed

    def _run(self, requests: Sequence[Any], names: Sequence[str]) -> Iterator[tuple[int, str, Answer]]:
        run: Any = self.engine.score if isinstance(requests[0], ScoreRequest) else self.engine.generate
        return run(requests, [arm for arm in self.arms if arm.name in names])


def _with_their_traces(keyed: Sequence[KeyedRequest], found: Mapping[str, Answer], size: int) -> dict[str, Answer]:
    """`found` without the blocks in which an answer lacks the trace that its request asks for.

    A whole block, of `size` requests, is computed again, so that its answers are the same to the last digit.
    """
    kept: dict[str, Answer] = {}
    for start in range(0, len(keyed), size):
        block = keyed[start : start + size]
        there = {key: (one.request, found[key]) for one in block for key in one.keys.values() if key in found}
        if not any(lacks_trace(*pair) for pair in there.values()):
            kept |= {key: answer for key, (_, answer) in there.items()}
    return kept


def _keyed(requests: Sequence[Request], keys: Sequence[Mapping[str, str]]) -> list[KeyedRequest]:
    """The different requests, the longest prompts first and those of one prompt together."""
    keyed = []
    seen: set[str] = set()
    for request, of_arm in zip(requests, keys, strict=True):
        new: dict[str, str] = {}
        for arm, key in of_arm.items():
            if key not in seen:
                seen.add(key)
                new[arm] = key
        if new:
            keyed.append(KeyedRequest(request, new))
    return sorted(keyed, key=lambda one: (-len(one.request.prompt.tokens), one.request.prompt.tokens))
