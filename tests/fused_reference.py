"""What a FusedCausalLM must equal: every row alone, without padding and without a cache, models called directly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin, LlamaConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from proxytune.fusion.rule import Fused, Rule
from proxytune.models import Ensemble

Own = Mapping[str, Sequence[list[int]]]
"""Prompts of their own by role, one per row."""


def next_logits(
    family: Ensemble,
    rule: Rule | None,
    experts: Sequence[str],
    shared: list[int],
    own: Mapping[str, list[int]],
    prompt: int,
) -> Fused:
    """Fused logits [V] after the tokens of one row, whose first `prompt` tokens `own` replaces for some roles.

    Without a rule they are the base's.
    """

    def last(role: str) -> Tensor:
        member = family[role]
        tokens = own[role] + shared[prompt:] if role in own else shared
        with torch.inference_mode(), member.active():
            return member.model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1, : family.vocab_size]

    if rule is None:
        return Fused(last("base").float(), torch.empty(0))
    return rule.fuse(last("base"), torch.stack([last(role) for role in experts]), last("antiexpert"))


def slow_greedy(
    family: Ensemble,
    rule: Rule | None,
    experts: Sequence[str],
    prompts: Sequence[list[int]],
    steps: int,
    own: Own | None = None,
    eos: int = 2,
) -> tuple[list[list[int]], list[list[list[float]]]]:
    """Greedy answers without the end-of-sequence token's followers, and the weights [row][step][expert]."""
    answers, weights = [], []
    for i, prompt in enumerate(prompts):
        tokens, chosen = list(prompt), []
        for _ in range(steps):
            mine = {role: rows[i] for role, rows in (own or {}).items()}
            fused = next_logits(family, rule, experts, tokens, mine, len(prompt))
            tokens.append(int(fused.logits.argmax()))
            chosen.append(fused.weights.tolist())
            if tokens[-1] == eos:
                break
        answers.append(tokens[len(prompt) :])
        weights.append(chosen)
    return answers, weights


class SlowFused(PreTrainedModel, GenerationMixin):
    """The reference as a model for transformers' own beam search and sampling; use it with use_cache=False."""

    config_class = LlamaConfig

    def __init__(
        self, family: Ensemble, rule: Rule | None, experts: Sequence[str], own: Own | None = None, prompt: int = 0
    ):
        super().__init__(LlamaConfig(vocab_size=family.vocab_size))
        self.generation_config = family["base"].model.generation_config
        self.nothing = torch.nn.Parameter(torch.zeros(1))
        self.family, self.rule, self.experts, self.own, self.prompt = family, rule, experts, own or {}, prompt

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> CausalLMOutput:
        rows = input_ids.shape[0]
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        logits = []
        for i in range(rows):
            mine = {role: texts[i * len(texts) // rows] for role, texts in self.own.items()}
            real = input_ids[i][mask[i].bool()].tolist()
            prompt = int(mask[i, : self.prompt].sum())
            logits.append(next_logits(self.family, self.rule, self.experts, real, mine, prompt).logits)
        return CausalLMOutput(logits=torch.stack(logits)[:, None])
