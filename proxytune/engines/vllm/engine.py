"""vLLM as an engine of experiments: the arms of a request are requests of vLLM's, all in one fused model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any, ClassVar

from proxytune.engines.checks import check_arms, check_length
from proxytune.engines.requests import Generated, GenerateRequest, Scored, ScoreRequest
from proxytune.engines.vllm.decoding import GrowingAnswer, KeptWeights, by_expert
from proxytune.engines.vllm.installed import TESTED, check_installed, check_replicas
from proxytune.engines.vllm.launch import engine_arguments
from proxytune.engines.vllm.running import Local, Replicas, VLLMRequest
from proxytune.engines.vllm.settings import arm_to_dict
from proxytune.errors import UserError
from proxytune.fusion.arm import Arm
from proxytune.models.facts import MemberFacts, Members
from proxytune.models.family import FamilySpec


class VLLMEngine:
    """Answers requests with every arm, in a vLLM engine that holds all members.

    Answers, sampled ones too, are those of `HFEngine` up to the rounding of batched matrix products. Scores come from
    vLLM's prompt log-probabilities; that of a continuation's last token is the raw one of a forced token.
    """

    loads_members: ClassVar[bool] = True

    def __init__(
        self,
        ensemble: Members[MemberFacts] | None,
        family: FamilySpec,
        batch_size: int | None = None,
        memory: float | None = None,
        max_model_len: int | None = None,
        tensor_parallel: int = 1,
        replicas: int = 1,
        quantization: str | None = None,
    ) -> None:
        """Starts vLLM and loads the members.

        Args:
            batch_size: requests of one arm that are decoded together; None: vLLM's own choice.
            memory, max_model_len, tensor_parallel, quantization: see `engine_arguments`.
            replicas: engines that share the requests, in processes that Ray starts; 1: one engine, in this process.

        Raises:
            UserError: without a fitting vLLM, and for members or settings that it refuses.
        """
        check_installed()
        check_replicas(replicas)
        self.facts = self.facts_with(quantization)
        self.batch_size = batch_size
        self._limit = None if max_model_len is None else max_model_len - 1  # the last token is never read
        self._tags = count()
        settings = engine_arguments(
            ensemble,
            family,
            memory=memory,
            max_model_len=max_model_len,
            tensor_parallel=tensor_parallel,
            quantization=quantization,
        )
        assert ensemble is not None  # or engine_arguments has refused it
        self.ensemble = ensemble
        settings |= {} if batch_size is None else {"max_num_seqs": batch_size}
        self._running = Local(settings) if replicas == 1 else Replicas(settings, replicas)

    @staticmethod
    def facts_with(quantization: str | None = None, **_: object) -> dict[str, str]:
        """Part of the keys of stored answers, from the settings of an engine."""
        return {"name": "vllm", "version": TESTED} | ({} if quantization is None else {"quantization": quantization})

    def score(self, requests: Sequence[ScoreRequest], arms: Sequence[Arm]) -> Iterator[tuple[int, str, Scored]]:
        """(request index, arm name, log-probabilities) for every request and arm. Raises UserError as `HFEngine`."""
        self._check(arms, [(request, len(request.continuation)) for request in requests])
        asked = {f"{next(self._tags)}": (i, arm) for i in range(len(requests)) for arm in arms}
        outputs = self._running.run(
            [_request(tag, arm, *_scoring(requests[i])) for tag, (i, arm) in asked.items() if requests[i].continuation]
        )
        for tag, (i, arm) in asked.items():
            yield i, arm.name, _scored(requests[i], arm, *outputs.get(tag, (None, {})))

    def generate(
        self, requests: Sequence[GenerateRequest], arms: Sequence[Arm]
    ) -> Iterator[tuple[int, str, Generated]]:
        """(request index, arm name, answer) for every request and arm. Raises UserError as `HFEngine`."""
        self._check(arms, [(request, request.max_new_tokens) for request in requests])
        answers = {
            f"{next(self._tags)}": (i, GrowingAnswer(self.ensemble, request, arm))
            for i, request in enumerate(requests)
            for arm in arms
        }
        while going := {tag: answer for tag, (_, answer) in answers.items() if answer.finish is None}:
            outputs = self._running.run([_request(tag, answer.arm, *answer.asked()) for tag, answer in going.items()])
            for tag, (output, weights) in outputs.items():
                going[tag].read(output.outputs[0].token_ids, weights)
        for i, answer in answers.values():
            yield i, answer.arm.name, answer.answer()

    def close(self) -> None:
        """Ends vLLM and frees its memory."""
        self._running.close()

    def _check(self, arms: Sequence[Arm], requests: Sequence[tuple[ScoreRequest | GenerateRequest, int]]) -> None:
        check_arms(arms)
        windows = {role: self._window(role) for arm in arms for role in arm.roles}
        for index, (request, new_tokens) in enumerate(requests):
            check_length(index, request, new_tokens, windows)
            if own := next((role for role in windows if request.prompt.of(role) != request.prompt.tokens), None):
                raise UserError(f"request {index}: {own} has a prompt of its own, which only engine=hf can read")

    def _window(self, role: str) -> int | None:
        """Tokens that the member reads here; None where nothing limits them."""
        limits = (self.ensemble[role].window, self._limit)
        return min((limit for limit in limits if limit is not None), default=None)


def _request(
    tag: str, arm: Arm, prompt: tuple[int, ...], sampling: dict[str, Any], drawn: Mapping[str, Any]
) -> VLLMRequest:
    """A request of vLLM's for one arm's answer; `drawn` as `GrowingAnswer.asked`."""
    return VLLMRequest(tag, prompt, {**sampling, "extra_args": {"arm": arm_to_dict(arm), "keep": tag, **drawn}})


def _scoring(request: ScoreRequest) -> tuple[tuple[int, ...], dict[str, Any], dict[str, Any]]:
    """The prompt and the continuation but for its last token are read; that one is forced, and has its own raw
    log-probability: it need not be read, so that a text may end with the window."""
    *before, last = request.continuation
    prompt = (*request.prompt.tokens, *before)
    return prompt, {"max_tokens": 1, "prompt_logprobs": 0, "logprobs": 0, "allowed_token_ids": [last]}, {}


def _scored(request: ScoreRequest, arm: Arm, output: Any, weights: KeptWeights) -> Scored:
    start, tokens = len(request.prompt.tokens), request.continuation
    if not tokens:
        return Scored((), (), ((),) * len(arm.experts))
    kept = [weights[start - 1 + i] for i in range(len(tokens))]
    read = zip(output.prompt_logprobs[start:], tokens[:-1], strict=True)
    scores = [
        *(_score(places[token]) for places, token in read),
        _last(output.outputs[0].logprobs[0], tokens[-1], kept),
    ]
    logprobs, greedy = zip(*scores, strict=True)
    return Scored(logprobs, greedy, by_expert(kept, arm))


def _score(place: Any) -> tuple[float, bool]:
    """Log-probability, and whether the token is the likeliest; vLLM's rank of equal ones is that of the last."""
    return place.logprob, place.rank == 1


def _last(places: Mapping[int, Any], token: int, kept: Sequence[object]) -> tuple[float, bool]:
    """Of the forced token, which is not even chosen where the rule gives it no probability or its logits are NaN."""
    if token in places:
        return _score(places[token])
    return (math.nan if kept[-1] is None else -math.inf), False
