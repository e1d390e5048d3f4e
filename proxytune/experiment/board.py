"""One task's answers: whoever asks first has every arm answer, so that each model runs once for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from proxytune.engines.arms import Arm
from proxytune.engines.requests import Generated, GenerateRequest, Scored, ScoreRequest
from proxytune.experiment.keys import Keys, Request
from proxytune.experiment.progress import bar
from proxytune.experiment.store import Answer, AnswerStore
from proxytune.models.ensemble import Ensemble


class Engine(Protocol):
    """What answers requests: `HFEngine`, say. Yields (request index, arm name, answer) as answers are finished."""

    ensemble: Ensemble

    def score(self, requests: Sequence[ScoreRequest], arms: Sequence[Arm]) -> Iterator[tuple[int, str, Scored]]: ...

    def generate(
        self, requests: Sequence[GenerateRequest], arms: Sequence[Arm]
    ) -> Iterator[tuple[int, str, Generated]]: ...


class Board:
    """Answers of all arms to all requests of a task: from the store, or computed and stored one by one.

    Arms that answer alike (the task's expert and "expert:<name>", say) and equal requests are computed once.
    """

    def __init__(
        self, engine: Engine, arms: Sequence[Arm], store: AnswerStore, label: str = "", progress: bool | None = None
    ) -> None:
        """`label` is shown before the progress bar."""
        self.engine = engine
        self.arms = tuple(arms)
        self.store = store
        self.label = label
        self.progress = progress
        self.keys = Keys(engine.ensemble, arms)
        self.computed = 0
        self.read = 0
        """Answers that the store had."""
        self._answers: dict[str, Answer] = {}

    @property
    def ensemble(self) -> Ensemble:
        return self.engine.ensemble

    @property
    def roles(self) -> tuple[str, ...]:
        """The members that some arm needs."""
        return tuple(dict.fromkeys(role for arm in self.arms for role in arm.roles))

    def ask(self, arm: Arm, requests: Sequence[Request]) -> list[Any]:
        """The answers of `arm` to `requests` (all to be scored, or all to be generated), in order."""
        keys = [self.keys.of(arm, request) for request in requests]
        if not self._answers.keys() >= set(keys):
            self._complete(requests)
        return [self._answers[key] for key in keys]

    def _complete(self, requests: Sequence[Request]) -> None:
        """Has every arm answer every request."""
        todo: dict[str, tuple[int, str]] = {}
        for index, request in enumerate(requests):
            for arm in self.arms:
                todo.setdefault(self.keys.of(arm, request), (index, arm.name))
        found = self.store.get([key for key in todo if key not in self._answers])
        self._answers |= found
        self.read += len(found)
        missing = {asked: key for key, asked in todo.items() if key not in self._answers}
        if missing:
            self._compute(requests, missing)

    def _compute(self, requests: Sequence[Request], missing: Mapping[tuple[int, str], str]) -> None:
        """One pass of the engine for the requests that lack the same arms: one in all, unless a run was cut off."""
        with bar(self.label, len(missing), self.progress) as advance:
            for indices, arms in _passes(missing):
                for i, arm, answer in self._run([requests[index] for index in indices], arms):
                    self._keep(missing[indices[i], arm], answer)
                    advance()

    def _run(self, requests: Sequence[Any], names: Sequence[str]) -> Iterator[tuple[int, str, Answer]]:
        run: Any = self.engine.score if isinstance(requests[0], ScoreRequest) else self.engine.generate
        return run(requests, [arm for arm in self.arms if arm.name in names])

    def _keep(self, key: str, answer: Answer) -> None:
        self.store.put(key, answer)
        self._answers[key] = answer
        self.computed += 1


def _passes(missing: Iterable[tuple[int, str]]) -> Iterator[tuple[list[int], tuple[str, ...]]]:
    """Missing (request index, arm name) pairs as (request indices, arm names) blocks."""
    lacking: dict[int, list[str]] = {}
    for index, arm in missing:
        lacking.setdefault(index, []).append(arm)
    blocks: dict[tuple[str, ...], list[int]] = {}
    for index, arms in lacking.items():
        blocks.setdefault(tuple(arms), []).append(index)
    return ((indices, arms) for arms, indices in blocks.items())
