"""What the engine must answer, the slow way: one arm, one request, no cache, no padding, no batch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from proxytune.engines.requests import GenerateRequest, Prompt, ScoreRequest
from proxytune.fusion import Fused
from proxytune.fusion.arm import Arm
from proxytune.models.ensemble import Ensemble


def plain_logits(ensemble: Ensemble, role: str, tokens: tuple[int, ...]) -> Tensor:
    """[L, V]: the member reads `tokens` at once."""
    member = ensemble[role]
    with torch.inference_mode(), member.active():
        logits = member.model(input_ids=torch.tensor([tokens]), use_cache=False).logits
    return logits[0, :, : ensemble.vocab_size].float()


def fused_after(ensemble: Ensemble, arm: Arm, prompt: Prompt, answer: tuple[int, ...]) -> Fused:
    """The arm's logits [n + 1, V] after the prompt and after each of the n tokens of `answer`."""
    logits = {
        role: plain_logits(ensemble, role, prompt.of(role) + answer)[len(prompt.of(role)) - 1 :] for role in arm.roles
    }
    if arm.rule is None:
        return Fused(logits[arm.base], torch.empty(0, len(answer) + 1))
    inputs = {"base": logits[arm.base], "antiexpert": logits.get(arm.antiexpert)}
    if arm.experts:
        inputs["experts"] = torch.stack([logits[role] for role in arm.experts])
    return arm.rule.fuse(**{name: inputs[name] for name in getattr(arm.rule, "inputs", inputs)})


def score(ensemble: Ensemble, arm: Arm, request: ScoreRequest) -> tuple[Tensor, list[bool], Tensor]:
    """Log-probabilities [n], greedy flags [n] and weights [T, n]."""
    n = len(request.continuation)
    fused = fused_after(ensemble, arm, request.prompt, request.continuation)
    logprobs = fused.logits.log_softmax(-1)[:n][range(n), request.continuation]
    best = [row.tolist().index(row.max()) for row in fused.logits[:n]]
    return logprobs, [b == c for b, c in zip(best, request.continuation, strict=True)], fused.weights[:, :n]


def generate(
    ensemble: Ensemble, arm: Arm, request: GenerateRequest, eos: tuple[int, ...]
) -> tuple[tuple[int, ...], str]:
    """Tokens and why they end."""
    tokens: tuple[int, ...] = ()
    while len(tokens) < request.max_new_tokens:
        row = fused_after(ensemble, arm, request.prompt, tokens).logits[-1]
        tokens += (next_token(row, request, step=len(tokens)),)
        if tokens[-1] in eos:
            return tokens, "eos"
        if any(stop in text(ensemble, request.prompt.of(arm.base), tokens) for stop in request.until):
            return tokens, "stop"
    return tokens, "length"


def text(ensemble: Ensemble, prompt: tuple[int, ...], tokens: tuple[int, ...], **options: bool) -> str:
    """All decoded, less the prompt; for prompts that end in a whole character."""
    before, whole = (ensemble.tokenizer.decode(list(ids), **options) for ids in (prompt, prompt + tokens))
    assert whole.startswith(before)
    return whole.removeprefix(before)


def next_token(row: Tensor, request: GenerateRequest, step: int) -> int:
    """The token drawn from logits [V], token by token in plain Python."""
    if request.temperature == 0:
        return row.tolist().index(row.max())
    probs = (row / request.temperature).softmax(-1).tolist()
    noise = np.random.default_rng((request.seed, step)).gumbel(size=len(probs))
    kept, mass = [], 0.0
    for token in sorted(range(len(probs)), key=lambda token: (-probs[token], token)):
        if mass >= request.top_p and request.top_p < 1:
            break
        kept.append(token)
        mass += probs[token]
    return max(kept, key=lambda token: (np.log(probs[token]) if probs[token] else -np.inf) + noise[token])
