"""The default engine: plain transformers models, one pass of each for all arms.

Methods import the code that runs models when they need it. Importing it takes seconds, and a run whose answers are all
stored needs only the class.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, TypeVar

from proxytune.engines.checks import check_arms, check_length
from proxytune.engines.hf.batching import AnswerT, Batches, Pending, Progress, Queue, RequestT
from proxytune.engines.hf.meter import Meter
from proxytune.engines.requests import Generated, GenerateRequest, Request, Scored, ScoreRequest
from proxytune.errors import UserError
from proxytune.fusion.arm import Arm
from proxytune.models.threads import few_threads
from proxytune.record import Drafts, TaskCosts

if TYPE_CHECKING:
    from proxytune.models.distinct import DistinctMembers
    from proxytune.models.ensemble import Ensemble
    from proxytune.models.static_state import StaticStates

log = logging.getLogger(__name__)
DEFAULT_BATCH_SIZE = 32
LONGEST_DRAFT = 64
Finished = TypeVar("Finished")


class HFEngine:
    """Answers requests with every arm, each model running once for all arms.

    Answers do not depend on the other arms, the other requests or the batch size, up to the rounding of batched matrix
    products. Ties between equal logits are broken by a fixed rule, but two tokens whose logits differ by less than that
    rounding (about 1e-6 of their size in float32) may change order.
    """

    traces: ClassVar[bool] = True
    """Whether it keeps the traces that requests ask for."""

    def __init__(
        self,
        ensemble: Ensemble,
        batch_size: int | None = None,
        speculate: int | str = "auto",
        compile: bool | str = "auto",
    ) -> None:
        """`batch_size` is the number of requests per batch; None: 32. It is halved when memory runs out.

        `speculate` is the maximum number of tokens drafted and verified in one pass: "auto" as many as pay, "off" or 0
        none. It changes no token (docs/speculation.md).

        `compile` says how models read answers. false: without compiling. true: with static caches and torch.compile,
        which takes seconds per model, and on a GPU also with CUDA graphs. "auto": on a GPU with CUDA graphs but without
        torch.compile, which takes about a second; on a CPU without compiling. Models that do not fit a static cache are
        not compiled, and the log names them. Logits are the same up to rounding.
        """
        if batch_size is not None and batch_size < 1:
            raise UserError(
                f"engine.batch_size = {batch_size}: give a number of requests >= 1, or null for {DEFAULT_BATCH_SIZE}"
            )
        if compile not in (True, False, "auto"):
            raise UserError(f"engine.compile = {compile}: give auto, true or false")
        self.ensemble = ensemble
        self.draft = _draft(speculate)
        self.compile = compile
        self._static: tuple[int, StaticStates] | None = None
        """The static states, and the batch size that they were made for."""
        self.meter = Meter()
        """Draft counts of the last call of `generate`."""
        self._said: set[str] = set()
        self._costs = TaskCosts()
        self.batches = Batches(DEFAULT_BATCH_SIZE if batch_size is None else batch_size)
        self._asked_size = self.batches.size

    @property
    def batch_size(self) -> int:
        """The number of requests per batch; reduced to what fits once memory has run out."""
        return self.batches.size

    @property
    def drafts(self) -> bool:
        """Whether drafts that are given with requests can make it faster."""
        return self.draft != 0

    def portion(self, requests: Sequence[Request], arms: Sequence[Arm]) -> int:
        """How many of the first `requests` are about a minute's work, by the size of the models and the requests."""
        from proxytune.engines.hf.work import portion

        return portion(self._distinct(requests, arms), requests, arms, self._asked_size)

    def score(
        self, requests: Sequence[ScoreRequest], arms: Sequence[Arm], progress: Progress | None = None
    ) -> Iterator[tuple[int, str, Scored]]:
        """(request index, arm name, log-probabilities) for every request and arm, in the order in which they finish.

        Requests that share a prompt share its KV state. Raises UserError, before any model runs, for an empty prompt,
        an unknown role, a repeated arm name, or a text longer than a member's window.
        """
        from proxytune.engines.hf.score import score_some

        self._static = None  # to free their memory for scoring
        longest: dict[tuple[int, ...], int] = {}
        for request in requests:
            prompt = request.prompt.tokens
            longest[prompt] = max(longest.get(prompt, 0), len(prompt) + len(request.continuation))

        def order(request: ScoreRequest) -> tuple[int, tuple[int, ...], int]:
            # Continuations of one prompt stay together, the longest first.
            return -longest[request.prompt.tokens], request.prompt.tokens, -len(request.continuation)

        return self._answer(requests, arms, score_some, order, lambda request: len(request.continuation), progress)

    def generate(
        self, requests: Sequence[GenerateRequest], arms: Sequence[Arm], progress: Progress | None = None
    ) -> Iterator[tuple[int, str, Generated]]:
        """(request index, arm name, answer) for every request and arm, in the order in which they finish.

        Raises UserError as `score` does; the window must hold prompt and `max_new_tokens`.
        """
        from proxytune.engines.hf.decode import generate_all

        def order(request: GenerateRequest) -> tuple[int, int]:
            return -len(request.prompt.tokens), -request.max_new_tokens

        self.meter = Meter()
        roles = {role for arm in arms for role in arm.roles}
        lengths = (len(one.prompt.of(role)) + one.max_new_tokens for one in requests for role in roles)
        longest = max(lengths, default=0)

        def answer(
            members: DistinctMembers, arms: Sequence[Arm], queue: Queue[GenerateRequest]
        ) -> Iterator[tuple[int, str, Generated]]:
            static = self._static_states(longest)
            return generate_all(members, arms, queue, self._draft_of(members), self.meter, static)

        return self._answer(requests, arms, answer, order, lambda request: request.max_new_tokens, progress)

    def _static_states(self, longest: int) -> StaticStates | None:
        """Static states for rows of at most `longest` tokens and a draft; None if dynamic caches are used."""
        from proxytune.models.static_state import StaticStates

        on_gpu = self.ensemble.device.type == "cuda"
        if self.compile is False or (self.compile == "auto" and not on_gpu):
            return None
        if self._static is None or self._static[0] != self.batches.size:
            self._static = self.batches.size, StaticStates(self.ensemble.members, self.compile is True)
        self._static[1].make_room(longest + LONGEST_DRAFT + 1)
        return self._static[1]

    def _draft_of(self, members: DistinctMembers) -> int | None:
        """The maximum length of a draft (None: as many as pay); 0 if a member cannot forget tokens."""
        from proxytune.models.rows import revisable

        fixed = [role for role in members.roles if not revisable(members.ensemble[role])]
        if self.draft != 0 and not self._said.issuperset(fixed):
            self._said |= set(fixed)
            log.info(
                "no speculation: %s can't forget what it has read (sliding window, state or endpoint)", ", ".join(fixed)
            )
        return 0 if fixed else self.draft

    def _answer(
        self,
        requests: Sequence[RequestT],
        arms: Sequence[Arm],
        answer: Callable[[DistinctMembers, Sequence[Arm], Queue[RequestT]], Iterator[tuple[int, str, AnswerT]]],
        order: Callable[[RequestT], tuple],
        new_tokens: Callable[[RequestT], int],
        progress: Progress | None,
    ) -> Iterator[tuple[int, str, AnswerT]]:
        check_arms(arms)
        windows = {role: self.ensemble[role].window for arm in arms for role in arm.roles}
        for index, request in enumerate(requests):
            check_length(index, request, new_tokens(request), windows)
        members = self._distinct(requests, arms)
        pending = [Pending(index, request, tuple(arms)) for index, request in enumerate(requests)]
        pending.sort(key=lambda one: order(one.request))
        answers = self.batches.run(pending, lambda queue: answer(members, arms, queue), progress)
        return self._on_few_threads(self._charged(answers, members, requests, arms))

    def _charged(
        self,
        answers: Iterator[tuple[int, str, AnswerT]],
        members: DistinctMembers,
        requests: Sequence[RequestT],
        arms: Sequence[Arm],
    ) -> Iterator[tuple[int, str, AnswerT]]:
        """Yields `answers`, then adds their costs to the total."""
        from proxytune.engines.hf.costs import added, bandwidth, costs

        clock, tokens = self.ensemble.clock, {arm.name: dict[int, Sequence[int]]() for arm in arms}
        clock.running = True
        clock.read()
        try:
            for index, name, answer in answers:
                tokens[name][index] = _tokens(requests[index], answer)
                yield index, name, answer
        finally:
            clock.running = False
        steps, seconds = clock.counts, clock.read()
        found = {"drafts": Drafts(**vars(self.meter)), "bandwidth": bandwidth(members, steps, seconds)}
        self._costs = added(self._costs, costs(members, arms, tokens, seconds).model_copy(update=found))

    def take_costs(self) -> TaskCosts:
        """The costs of the answers since this was last called."""
        taken, self._costs = self._costs, TaskCosts()
        return taken

    def _distinct(self, requests: Sequence[Request], arms: Sequence[Arm]) -> DistinctMembers:
        from proxytune.models.distinct import DistinctMembers

        prompts = {id(request.prompt): request.prompt for request in requests}.values()
        roles = (role for arm in arms for role in arm.roles)
        return DistinctMembers(self.ensemble, roles, lambda role: tuple(prompt.of(role) for prompt in prompts))

    def _on_few_threads(self, answers: Iterator[Finished]) -> Iterator[Finished]:
        with few_threads(self.ensemble.members.values()):
            yield from answers


def _tokens(request: ScoreRequest | GenerateRequest, answer: Scored | Generated) -> Sequence[int]:
    """The tokens of an answer that the members read."""
    return answer.tokens if isinstance(answer, Generated) else getattr(request, "continuation", ())


def _draft(speculate: int | str) -> int | None:
    """The maximum length of a draft; None: as many as pay. YAML reads `off` as false."""
    if speculate == "auto":
        return None
    if speculate is False or speculate == "off":
        return 0
    if isinstance(speculate, int) and not isinstance(speculate, bool) and 0 <= speculate <= LONGEST_DRAFT:
        return speculate
    raise UserError(f"engine.speculate = {speculate}: give auto, off, or a number of tokens from 0 to {LONGEST_DRAFT}")
