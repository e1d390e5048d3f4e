"""`FusedCausalLM.generate(draft=...)`: greedy decoding and sampling with drafts that are verified in one pass.

Everything around is transformers': configs, logits processors, stopping criteria and streamers mean the same, and the
tokens are the same, sampled ones too. Rows of a batch grow at their own pace.

Shapes: B rows, P columns of the prompt, t positions read, V tokens, T experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import takewhile
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from proxytune.compat.transformers import GenerateDecoderOnlyOutput, GenerationMode, pad_token
from proxytune.errors import UserError
from proxytune.models.drafting import CONFIDENT, look_up
from proxytune.models.ensemble import Inputs
from proxytune.models.hf.cache import FusedCache
from proxytune.models.hf.draws import Draws
from proxytune.models.hf.inputs import check_finite, new_mask
from proxytune.models.rows import forget, pad, revisable

if TYPE_CHECKING:
    from proxytune.models.hf.causal_lm import FusedCausalLM

_DRAFT: ContextVar[str | None] = ContextVar("draft", default=None)
DRAFTS = ("expert", "ngram")
MOST = 6
"""Tokens of a draft at most."""


def check_draft(draft: str, experts: Sequence[str], others: dict[str, Any]) -> None:
    """UserError for a draft that cannot be made."""
    if draft not in DRAFTS:
        raise UserError(f"draft={draft!r}: give {' or '.join(map(repr, DRAFTS))}, or None for no drafts")
    if draft == "expert" and not experts:
        raise UserError('draft="expert": this rule takes no expert; draft="ngram" needs none')
    for name in ("assistant_model", "custom_generate", "prompt_lookup_num_tokens"):
        if others.get(name) is not None:
            raise UserError(f"draft={draft!r} and {name} are two ways to draft: give one of them")


@contextmanager
def drafting(draft: str | None) -> Iterator[None]:
    """What `asked_draft` says within, in this thread."""
    token = _DRAFT.set(draft)
    try:
        yield
    finally:
        _DRAFT.reset(token)


def asked_draft() -> str | None:
    """The draft that `generate` was given."""
    return _DRAFT.get()


def check_mode(mode: GenerationMode, config: GenerationConfig) -> None:
    """UserError where drafts are asked for and something else than greedy decoding or sampling with a cache."""
    if asked_draft() is None:
        return
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise UserError(f"draft goes with greedy decoding and sampling (num_beams=1), not with {mode.value}")
    if config.use_cache is False:
        raise UserError("draft needs use_cache=True")


def generate_drafted(
    model: FusedCausalLM,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    draft: str,
    synced_gpus: bool = False,
    streamer: Any = None,
    **model_kwargs: Any,
) -> GenerateDecoderOnlyOutput | Tensor:
    """In place of `_sample` of transformers; the arguments are its own."""
    _check_config(generation_config, synced_gpus)
    cache: FusedCache = model_kwargs["past_key_values"]
    rows = _Rows(model, cache, draft, input_ids, logits_processor, stopping_criteria, generation_config, streamer)
    rows.prefill(input_ids, model_kwargs.get("attention_mask"))
    while active := rows.active():
        rows.grow(*rows.read(active))
    sequences = rows.finish()
    if streamer is not None:
        streamer.end()
    if not generation_config.return_dict_in_generate:
        return sequences
    return GenerateDecoderOnlyOutput(sequences=cast(Any, sequences), past_key_values=cache)


def _check_config(config: GenerationConfig, synced_gpus: bool) -> None:
    """UserError for what drafts do not go with."""
    for name in ("output_scores", "output_logits"):
        if config.return_dict_in_generate and getattr(config, name):
            raise UserError(f"draft keeps no scores of single steps: leave {name} out, or draft=None")
    for name, neutral in (("guidance_scale", (None, 1)), ("watermarking_config", (None,))):
        if getattr(config, name) not in neutral:
            raise UserError(f"draft needs logits processors without a memory: leave {name} out, or draft=None")
    if synced_gpus:
        raise UserError("draft does not go with synced_gpus: each process grows its rows at its own pace")


class _Rows:
    """The rows of a batch: what they have, what is drafted for them, and what the members make of it."""

    def __init__(
        self,
        model: FusedCausalLM,
        cache: FusedCache,
        draft: str,
        prompt: Tensor,
        processors: LogitsProcessorList,
        criteria: StoppingCriteriaList,
        config: GenerationConfig,
        streamer: Any,
    ) -> None:
        self.model, self.cache, self.draft, self.streamer = model, cache, draft, streamer
        self.processors, self.criteria = processors, criteria
        ends = [one.eos_token_id for one in criteria if hasattr(one, "eos_token_id")]
        self.eos = {int(token) for some in ends for token in some.flatten()}
        self.pads = bool(ends)
        """Whether a row that has ended is padded; otherwise it goes on until all have ended."""
        self.pad_token = pad_token(config)
        self.start = prompt.shape[1]
        room = torch.full((len(prompt), config.max_length + 1 - self.start), self.pad_token, device=prompt.device)
        self.ids = torch.cat([prompt, room], dim=1)
        """[B, P + the most new tokens + 1]"""
        self.longest = config.max_length - self.start
        self.draws = Draws(len(prompt), model.config.vocab_size, prompt.device) if config.do_sample else None
        self.answers: list[list[int]] = [[] for _ in prompt]
        self.drafts: list[list[int]] = [[] for _ in prompt]
        self.ended: list[int | None] = [None] * len(prompt)
        """The number of tokens with which each row ended."""
        self.unread = [0] * len(prompt)
        """How many of the last tokens that the members read are none of each row."""
        self.weights: list[list[Tensor]] = [[] for _ in prompt]
        roles = cache.members.roles
        self.most = MOST if all(revisable(model.ensemble[role]) for role in roles) else 0

    def active(self) -> list[int]:
        """The rows that go on."""
        if self.pads:
            return [row for row, end in enumerate(self.ended) if end is None]
        length = self.length if None not in self.ended else self.longest
        return [row for row, answer in enumerate(self.answers) if len(answer) < length]

    @property
    def length(self) -> int:
        """New tokens of the longest row."""
        return max(end or 0 for end in self.ended)

    def prefill(self, prompt: Tensor, attention_mask: Tensor | None) -> None:
        """The members read the prompts, and each row gets its first token."""
        new = prompt[:, self.cache.length :]
        mask = new_mask(attention_mask, new, self.cache.length)
        read = self.model.ensemble.step(self.cache.next_inputs(new, mask, 1))
        self.grow(read, mask[:, -1:])

    def read(self, active: Sequence[int]) -> tuple[dict[str, Tensor], Tensor]:
        """The members read the last token of each row that goes on, and its draft.

        Returns logits [B, t, V] by role, and where they follow a real token, [B, t].
        """
        self._forget()
        self.drafts = [[] for _ in self.answers]
        last = [answer[-1:] if row in active else [] for row, answer in enumerate(self.answers)]
        read = {}
        if self.draft == "expert" and self.most:
            role = self._expert()
            read[role] = self._draft_on(role, last, active)
        elif self.draft == "ngram":
            for row in active:
                self.drafts[row] = self._look_up(row)
        ids, mask = pad([one + draft for one, draft in zip(last, self.drafts, strict=True)], left=False)
        others = {role: state for role, state in self.cache.states.items() if role not in read}
        inputs = {role: Inputs(state, ids, mask, ids.shape[1]) for role, state in others.items()}
        return read | self.model.ensemble.step(inputs), torch.ones_like(ids) if mask is None else mask

    def finish(self) -> Tensor:
        """The sequences [B, P + new tokens]. The cache is left as if the rows had been decoded one by one."""
        self._forget()
        self.cache.length = self.start + self.length - 1
        if self.model.arm.rule is not None:
            self.cache.note(self._weights())
        if self.draws is not None:
            self.draws.rewind(self.length)
        ids = self.ids[:, : self.start + self.length]
        for row, end in enumerate(self.ended):
            if self.pads and end is not None:
                ids[row, self.start + end :] = self.pad_token
        return ids

    def _forget(self) -> None:
        """The members' states are rid of what is none of the rows."""
        if any(self.unread):
            for state in self.cache.states.values():
                forget(state, self.unread)

    def _weights(self) -> Tensor:
        """[T, B, new tokens], NaN where a row had ended."""
        experts = len(self.model.arm.experts)
        weights = torch.full((experts, len(self.answers), self.length), torch.nan, device=self.ids.device)
        for row, some in enumerate(self.weights):
            for step, one in enumerate(some[: self.length]):
                weights[:, row, step] = one
        return weights

    def _look_up(self, row: int) -> list[int]:
        """A draft for the row from its own text, up to an end token: that is chosen after the draft, not in it."""
        room = min(self.most, self.longest - len(self.answers[row]) - 1)
        text = self.ids[row, : self.start].tolist() + self.answers[row]
        found = look_up(text, [text], room) if room > 0 else ()
        return list(takewhile(lambda token: token not in self.eos, found))

    def _expert(self) -> str:
        """The member that runs for the expert with the largest weight over the rows."""
        last = torch.stack([some[-1] for some in self.weights]).sum(0)
        return self.cache.members.of[self.model.arm.experts[int(last.argmax())]]

    def _draft_on(self, role: str, last: Sequence[list[int]], rows: Sequence[int]) -> Tensor:
        """The expert reads the `last` tokens, and in `rows` on by itself while it is confident: logits [B, t, V]."""
        state, parts, tokens = self.cache.states[role], [], list(last)
        while any(tokens):
            ids, mask = pad(tokens, left=False)
            parts.append(self.model.ensemble.step({role: Inputs(state, ids, mask, 1)})[role])
            tokens = [[] for _ in tokens]
            for row, token in self._confident(rows, parts[-1][:, 0].float()):
                self.drafts[row].append(token)
                tokens[row] = [token]
            rows = [row for row in rows if tokens[row]]
        return torch.cat(parts, dim=1)

    def _confident(self, rows: Sequence[int], logits: Tensor) -> list[tuple[int, int]]:
        """The next token by `logits` [B, V] of each of `rows` whose draft may go on with it."""
        found = []
        for step, some in self._by_step(rows, lambda row: len(self.answers[row]) + len(self.drafts[row])):
            for row, token, sure in zip(some, *self._choose(step, some, logits), strict=True):
                self.ids[row, self.start + step] = token
                room = len(self.drafts[row]) < self.most and step + 1 < self.longest
                if sure >= CONFIDENT and room and token not in self.eos:
                    found.append((row, token))
        return found

    def _by_step(self, rows: Sequence[int], step_of: Any) -> list[tuple[int, list[int]]]:
        """The rows that are at the same step, the first steps first."""
        steps: dict[int, list[int]] = {}
        for row in rows:
            steps.setdefault(step_of(row), []).append(row)
        return sorted(steps.items())

    def _choose(self, step: int, rows: list[int], logits: Tensor) -> tuple[list[int], list[float]]:
        """Of each of `rows`, by `logits` [B, V] after `step` new tokens, the next token, and its lead over others."""
        scores = logits
        if len(self.processors):
            scores = self.processors(cast(Any, self.ids[:, : self.start + step]), cast(Any, logits.clone()))
        odds = scores[rows].softmax(dim=-1)
        if self.draws is None:
            return scores[rows].argmax(dim=-1).tolist(), odds.amax(dim=-1).tolist()
        odds = odds / self.draws.of(step)[rows]
        return odds.argmax(dim=-1).tolist(), (odds.amax(dim=-1) / odds.sum(dim=-1)).tolist()

    def grow(self, read: dict[str, Tensor], mask: Tensor) -> None:
        """Each row takes the tokens that it would have chosen one by one, by `read`, logits [B, t, V] by role."""
        arm = self.model.arm
        logits = self.cache.members.by_role(arm.roles, read)
        fused = arm.answer(logits)
        check_finite(fused.logits, logits, mask, arm.rule)
        going = self.active()
        read_tokens = mask.sum(dim=1).tolist()
        taken = [0] * len(self.answers)
        while going:
            step, some = self._by_step(going, lambda row: len(self.answers[row]))[0]
            here = fused.logits.new_zeros(len(self.answers), fused.logits.shape[-1])
            places = [taken[row] for row in some]
            here[some] = fused.logits[some, places]
            tokens, _ = self._choose(step, some, here)
            for row, place, token in zip(some, places, tokens, strict=True):
                self.ids[row, self.start + step] = token
                self.answers[row].append(token)
                self.weights[row].append(fused.weights[:, row, place].cpu())
                taken[row] += 1
            self._end(step, some)
            going = [row for row in going if row not in some or self._follows(row, taken[row])]
        self.unread = [max(0, int(n) - t) for n, t in zip(read_tokens, taken, strict=True)]

    def _follows(self, row: int, taken: int) -> bool:
        """Whether the row goes on in this pass: it has not ended, and took what was drafted."""
        goes_on = self.ended[row] is None or not self.pads
        return goes_on and self.drafts[row][taken - 1 : taken] == self.answers[row][-1:]

    def _end(self, step: int, rows: list[int]) -> None:
        """Notes which of `rows` end with their token number `step`."""
        stopped = self.criteria(self.ids[:, : self.start + step + 1], None)
        for row in rows:
            if self.ended[row] is None and bool(stopped[row]):
                self.ended[row] = step + 1
            if self.streamer is not None:
                self.streamer.put(self.ids[row : row + 1, self.start + step].cpu())
