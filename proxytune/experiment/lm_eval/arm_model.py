"""One arm as lm-evaluation-harness sees it. It splits texts as lm-eval's HFLM does; answers come from `SharedAnswers`.

It does not derive from HFLM, whose import alone takes seconds (peft, accelerate and transformers' model classes)."""

from __future__ import annotations

import hashlib
import logging
import math
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from jinja2.exceptions import TemplateError
from lm_eval.api.instance import Instance

from proxytune.compat.lm_eval import DEFAULT_WINDOW, TemplateLM, generation_settings, rolling_windows, stop_strings
from proxytune.engines.requests import Answer, GenerateRequest, Prompt, Scored, ScoreRequest
from proxytune.errors import UserError, unknown_name
from proxytune.experiment.answers.shared import Failed, SharedAnswers
from proxytune.fusion.arm import Arm
from proxytune.models.chat import Chat
from proxytune.models.vocabulary import known_words, token_ids

log = logging.getLogger(__name__)
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""lm-eval's names for the number of tokens to generate."""
_NEUTRAL: dict[str, Any] = {"num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1.0, "top_k": 0}
"""Settings that are understood only at the value where they do nothing."""
_LENGTH = 256
"""Tokens to generate where neither the task nor a setting says how many, as in HFLM."""
_NOT_SCORED = (math.nan, False)


@dataclass(frozen=True)
class ItemAnswer:
    """An arm's answer to one request of an item, and how many tokens of the prompt did not fit and were cut off."""

    answer: Answer | Failed
    cut: int
    alone: bool = False
    """Whether a continuation was scored without any context, as mutual information compares it."""


class ArmLM(TemplateLM):
    """An lm-eval model whose answers are those of one arm.

    A prompt too long for the smallest member's window loses its beginning for all arms alike, as in HFLM;
    `item_answers[item]` has how much. Where the arm failed, lm-eval gets NaN or an empty text: `failed` has these
    items, which must not be scored.
    """

    def __init__(self, shared: SharedAnswers, arm: Arm, seed: int = 0) -> None:
        """`seed` is the run's: a sampled answer's noise comes only from it, the item and the repetition."""
        super().__init__()
        windows = [shared.ensemble[role].window for role in shared.roles]
        self.tokenizer = shared.ensemble.tokenizer
        self.max_length: int = min((window for window in windows if window is not None), default=DEFAULT_WINDOW)
        self.shared = shared
        self.arm = arm
        self.seed = seed
        self.item_answers: dict[int, list[ItemAnswer]] = {}
        """By item (lm-eval's doc id), in the order of its requests."""
        self._instances: list[Instance] = []
        """What the requests of a call stand for, one each."""
        self._scored: list[ItemAnswer] = []

    @property
    def eot_token_id(self) -> int | None:  # type: ignore[override]
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int | None:
        """What stands before a text without context, as in HFLM: the beginning-of-sequence token, or else the end's."""
        begin = self.tokenizer.bos_token_id
        return self.tokenizer.eos_token_id if begin is None else begin

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval calls its cache of prompts by."""
        return self.tokenizer.name_or_path.replace("/", "__")

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        for context, continuation in (request.args for request in requests):
            if context == "" and self._start and not self.tok_encode(continuation, add_special_tokens=False):
                raise _nothing_to_score(context, continuation)
        self._instances = requests
        results = super().loglikelihood(requests, disable_tqdm=True)
        for request, answer in zip(requests, self._scored, strict=True):
            self._note(request, replace(answer, alone=request.args[0] == ""))
        return results

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        for request in requests:
            if self._start and not (request.args[0] and self.tok_encode(request.args[0])):
                raise UserError(f"item {request.doc_id} is an empty text, which has nothing to score: leave it out")
        windows = [
            rolling_windows(self.tok_encode(request.args[0]), self._start[0], self.max_length) for request in requests
        ]
        self._instances = []  # nothing watches: a text takes several requests
        scores = iter(self._loglikelihood_tokens([(None, *window) for some in windows for window in some]))
        scored = iter(self._scored)
        for request, some in zip(requests, windows, strict=True):
            self._note(request, *islice(scored, len(some)))
        return [sum(score for score, _ in islice(scores, len(some))) for some in windows]

    def _loglikelihood_tokens(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """`requests` are ((context, continuation) or None, context tokens, continuation tokens)."""
        fitted = [self._score_request(*request) for request in requests]
        answers = self.shared.answer(self.arm, [request for request, _ in fitted], self._instances)
        self._scored = [ItemAnswer(answer, cut) for answer, (_, cut) in zip(answers, fitted, strict=True)]
        return [_NOT_SCORED if isinstance(a, Failed) else (sum(a.logprobs), all(a.greedy)) for a in answers]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        seen: Counter[int] = Counter()
        fitted = []
        traced = set(self.shared.tracing.first(request.doc_id or 0 for request in requests))
        for request in requests:
            context, gen_kwargs = request.args
            asked, cut = self._generate_request(context, gen_kwargs, self._seed_of(request, seen[id(request)]))
            if request.doc_id in traced:
                asked = replace(asked, trace=self.shared.tracing.level)
            fitted.append((asked, cut))
            seen[id(request)] += 1
        answers = self.shared.answer(self.arm, [request for request, _ in fitted], requests)
        for request, answer, (_, cut) in zip(requests, answers, fitted, strict=True):
            self._note(request, ItemAnswer(answer, cut))
        return ["" if isinstance(answer, Failed) else answer.text for answer in answers]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None) -> list[int]:  # type: ignore[override]
        """What the members read for `string`; raises UserError for a word that the tokenizer has no token for."""
        tokens, key = self.shared.tokens, (string, add_special_tokens)
        if key not in tokens:  # every arm is asked the same texts
            tokens[key] = array("I", self._encoded(string, add_special_tokens))
        return tokens[key].tolist()

    def _encoded(self, string: str, add_special_tokens: bool | None) -> list[int]:
        if add_special_tokens is None:
            return token_ids(self.tokenizer, string)
        with known_words(self.tokenizer, string):
            return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The base's template, with lm-eval's --apply_chat_template; UserError where there is none, or another one."""
        own = [role for role in self.shared.roles if self.shared.ensemble[role].render is not None]
        if own:
            raise UserError(
                f"--apply_chat_template: {own[0]} has a chat template of its own already (chat): leave one out"
            )
        if self.tokenizer.chat_template is None:
            raise UserError("--apply_chat_template: the base's tokenizer has no chat template: leave the option out")
        try:
            return self._rendered(chat_history, add_generation_prompt)
        except TemplateError:  # some templates refuse a system prompt
            log.warning("--apply_chat_template: the base's template takes no system prompt: it is left out")
            turns = [turn for turn in chat_history if turn["role"] != "system"]
            return self._rendered(turns, add_generation_prompt)

    def _rendered(self, turns: list[dict[str, str]], add_generation_prompt: bool) -> str:
        text: Any = self.tokenizer.apply_chat_template(
            turns,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            strftime_now=Chat().strftime,
        )
        return text

    @property
    def _start(self) -> list[int]:
        """What stands for an empty prompt; raises UserError where there is no such token."""
        if self.prefix_token_id is None:
            raise UserError(
                "the base's tokenizer has neither a beginning- nor an end-of-sequence token, so nothing can stand "
                "for an empty prompt: give it one, or write a prompt"
            )
        return [self.prefix_token_id]

    @property
    def failed(self) -> dict[int, str]:
        """Items at one or more of whose requests the arm failed, or whose choices cannot be compared -> the error."""
        left_out = self.left_out
        found = {item: _error(answers) for item, answers in self.item_answers.items() if item not in left_out}
        return {item: error for item, error in found.items() if error is not None}

    @property
    def left_out(self) -> set[int]:
        """Items none of whose choices is among the likeliest tokens that the endpoint of the arm's base gives."""
        if not self.shared.ensemble[self.arm.base].remote:
            return set()
        return {item for item, answers in self.item_answers.items() if all(is_ruled_out(one.answer) for one in answers)}

    def _note(self, request: Instance, *answers: ItemAnswer) -> None:
        assert request.doc_id is not None
        self.item_answers.setdefault(request.doc_id, []).extend(answers)

    def _score_request(
        self, texts: tuple[str, str] | None, context: list[int], continuation: list[int]
    ) -> tuple[ScoreRequest, int]:
        if not continuation:
            raise _nothing_to_score(*(texts or ("", "")))
        # The last token is never read, so that one more fits.
        room = self.max_length + 1 - len(continuation)
        if room < 1:
            raise UserError(
                f"a continuation of {len(continuation)} tokens is longer than the smallest member's window "
                f"({self.max_length} tokens)"
            )
        # lm-eval has moved the context's last spaces to the continuation, so that an own prompt has none either.
        prompt, cut = self._prompt(texts[0].rstrip() if texts else "", context or self._start, room)
        return ScoreRequest(prompt, tuple(continuation)), cut

    def _generate_request(self, context: str, gen_kwargs: Mapping[str, Any], seed: int) -> tuple[GenerateRequest, int]:
        decoding = decoding_options(gen_kwargs, _LENGTH)
        room = self.max_length - decoding["max_new_tokens"]
        if room < 1:
            raise UserError(
                f"max_gen_toks = {decoding['max_new_tokens']} leaves no room for a prompt in the smallest member's "
                f"window ({self.max_length} tokens)"
            )
        end = self.eot_token_id
        eos = None if end is None else self.tokenizer.decode([end], skip_special_tokens=False)
        until = tuple(stop_strings(decoding.pop("until"), eos=eos))
        banned = tuple(self._only_token(word) for word in decoding.pop("bad_words", ()))
        prompt, cut = self._prompt(context, self.tok_encode(context) or self._start, room)
        # Greedy answers do not depend on the seed, and are found again under another one.
        seed = seed if decoding["temperature"] > 0 else 0
        return GenerateRequest(prompt, until=until, banned=banned, seed=seed, **decoding), cut

    def _only_token(self, word: str) -> int:
        """The token that the tokenizer makes of `word` alone; UserError where that is not one."""
        tokens = self.tokenizer.encode(word, add_special_tokens=False)
        if len(tokens) != 1:
            raise UserError(
                f"bad_words: {word!r} is {len(tokens)} tokens of this tokenizer; only single tokens are banned"
            )
        return tokens[0]

    def _prompt(self, context: str, tokens: Sequence[int], room: int) -> tuple[Prompt, int]:
        """The last `room` tokens for all members, and for those with a prompt of their own the same of theirs."""
        own = self._own(context) if context else {}
        longest = max(len(prompt) for prompt in (tokens, *own.values()))
        fitted = {role: tuple(prompt[-room:]) for role, prompt in own.items()}
        return Prompt(tuple(tokens[-room:]), fitted), max(0, longest - room)

    def _own(self, context: str) -> dict[str, list[int]]:
        own = {}
        for role in self.shared.roles:
            member = self.shared.ensemble[role]
            if member.render is not None:
                own[role] = token_ids(member.tokenizer or self.tokenizer, member.render(context))
        return own

    def _seed_of(self, request: Instance, repetition: int) -> int:
        digest = hashlib.sha256(f"{self.seed} {request.doc_id} {request.idx} {repetition}".encode()).digest()
        return int.from_bytes(digest[:7], "big")


def is_ruled_out(answer: Answer | Failed) -> bool:
    """Whether a continuation has the log-probability -inf: the arm's rule gives one of its tokens no probability."""
    return isinstance(answer, Scored) and -math.inf in answer.logprobs


def _error(answers: Sequence[ItemAnswer]) -> str | None:
    """Why an item cannot be judged: the arm failed, or which of its choices is likeliest is undefined.

    A choice that is ruled out is less likely than every other; where all are, none is the likeliest. One that is ruled
    out without its context as well would gain infinitely much by the context, whatever that is.
    """
    errors = [one.answer.error for one in answers if isinstance(one.answer, Failed)]
    choices = [one for one in answers if not one.alone] or answers
    if errors:
        return errors[0]
    if all(is_ruled_out(one.answer) for one in choices):
        return "every continuation is ruled out (log-probability -inf)"
    if any(is_ruled_out(one.answer) for one in answers if one not in choices):
        return "a continuation without its context is ruled out (log-probability -inf)"
    return None


def _nothing_to_score(context: str, continuation: str) -> UserError:
    """lm-eval asserts that there is a token to score. None would count as certain: log-probability 0."""
    return UserError(
        f"nothing is left to score of the continuation {continuation!r} after the context ending in {context[-40:]!r}: "
        "it is empty, or the tokenizer merges it into the context's last token: change the task's doc_to_text, "
        "target_delimiter or choices"
    )


def decoding_options(gen_kwargs: Mapping[str, Any], default_length: int) -> dict[str, Any]:
    """lm-eval's generation settings as fields of a GenerateRequest; UserError for what would not be honoured."""
    known = {"until", "bad_words", "do_sample", "temperature", "top_p", *_LENGTHS, *_NEUTRAL}
    for name, value in gen_kwargs.items():
        if name not in known:
            raise unknown_name("generation setting", name, known)
        if name in _NEUTRAL and value not in (_NEUTRAL[name], None):
            raise UserError(f"generation setting {name}={value} is not supported; only {_NEUTRAL[name]} is")
    lengths = [name for name in _LENGTHS if gen_kwargs.get(name) is not None]
    if len(lengths) > 1:
        raise UserError(f"generation settings {' and '.join(lengths)} mean the same: give one of them")
    settings: dict[str, Any] = dict(generation_settings(dict(gen_kwargs), default_length))
    if settings["max_gen_toks"] < 0:
        raise UserError(f"max_gen_toks={settings['max_gen_toks']} is not allowed: it is a number of tokens, 0 or more")
    options = {"max_new_tokens": settings["max_gen_toks"], "until": [stop for stop in settings["until"] if stop]}
    if gen_kwargs.get("bad_words"):
        options["bad_words"] = list(gen_kwargs["bad_words"])
    if not settings["do_sample"]:
        return options | {"temperature": 0.0, "top_p": 1.0}
    temperature, top_p = float(settings.get("temperature", 0.0)), float(settings.get("top_p", 1.0))
    if not temperature > 0:
        raise UserError(f"do_sample=true needs a temperature above 0, not {temperature}")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p={top_p} is not allowed: it is a probability above 0 and at most 1")
    return options | {"temperature": temperature, "top_p": top_p}
