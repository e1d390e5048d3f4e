"""Checks of what FusedCausalLM.forward is given, and of the logits that it returns.

Shapes: B rows, t tokens, K positions whose logits are kept, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from proxytune.errors import UserError
from proxytune.fusion.rule import Rule
from proxytune.models.hf.cache import FusedCache, OwnPrompt
from proxytune.models.vocabulary import token_ids


def left_padded(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], device: torch.device) -> dict[str, Tensor]:
    """input_ids and attention_mask, both [B, longest]; what stands in the padding is never read.

    Raises UserError for a word that the tokenizer has no token for.
    """
    rows = [token_ids(tokenizer, text) for text in texts]
    longest = max(map(len, rows))
    tokens = [[0] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return {"input_ids": torch.tensor(tokens, device=device), "attention_mask": torch.tensor(mask, device=device)}


def own_prompt(role: str, prompt: Any, rows: int) -> OwnPrompt:
    """`prompt` of `role`, token ids [B, n] or what a tokenizer returns, for a batch that repeats its rows."""
    tokens = prompt if isinstance(prompt, Tensor) else prompt["input_ids"]
    mask = None if isinstance(prompt, Tensor) else prompt.get("attention_mask")
    if tokens.ndim != 2 or rows % tokens.shape[0]:
        raise UserError(f"member_prompts[{role!r}] must be [rows, tokens] for {rows} rows, not {list(tokens.shape)}")
    return OwnPrompt(tokens, torch.ones_like(tokens) if mask is None else mask).expand(rows)


def new_mask(mask: Tensor | None, tokens: Tensor, past: int) -> Tensor:
    """The part of `mask` [B, past + t] that belongs to `tokens` [B, t]."""
    if mask is None:
        return torch.ones_like(tokens)
    if mask.shape != (tokens.shape[0], past + tokens.shape[1]):
        raise UserError(
            f"attention_mask must be [rows, past + tokens] = {[tokens.shape[0], past + tokens.shape[1]]}, "
            f"not {list(mask.shape)}"
        )
    return mask[:, past:].to(torch.long)


def kept(logits_to_keep: int, tokens: int, labels: Tensor | None, cache: FusedCache) -> int:
    """K: how many last positions of `tokens` get logits."""
    if not isinstance(logits_to_keep, int) or logits_to_keep < 0:
        raise UserError(f"logits_to_keep must be a number of last positions (0: all), not {logits_to_keep!r}")
    if labels is not None and logits_to_keep != 0:
        raise UserError("labels need the logits of every position: leave logits_to_keep at 0")
    if cache.own and logits_to_keep == 0:
        raise UserError("member_prompts need logits_to_keep: 1 + the number of tokens after the prompt")
    return min(logits_to_keep, tokens) if logits_to_keep > 0 else tokens


def refuse(unsupported: Mapping[str, Any]) -> None:
    """UserError for arguments of transformers models that have no meaning for several models."""
    for name, value in unsupported.items():
        # generate hands the tokenizers for stop strings and assistants down to forward.
        if name not in ("tokenizer", "assistant_tokenizer") and value is not None and value is not False:
            raise UserError(f"FusedCausalLM does not take {name}: the members share token ids and nothing else")


def check_generation(config: GenerationConfig, own_prompts: bool) -> None:
    """UserError for ways to generate that several models do not have; `own_prompts`: members have some."""
    check_dynamic(config.cache_implementation)
    for name in ("assistant_early_exit", "use_mtp", "speculation_type"):
        if getattr(config, name, None):
            raise UserError(f"{name} drafts from the layers of one model: give an assistant_model instead")
    if config.num_beams > 1 and config.guidance_scale not in (None, 1):
        raise UserError("guidance_scale needs num_beams=1: transformers does not reorder its second cache with beams")
    if config.output_hidden_states or config.output_attentions:
        raise UserError("several models have no common hidden states or attentions: call a member of model.ensemble")
    if own_prompts and (config.use_cache is False or config.prefill_chunk_size is not None):
        raise UserError("member_prompts need use_cache=True and no prefill_chunk_size")


def check_dynamic(cache_implementation: str | None) -> None:
    if cache_implementation not in (None, "dynamic"):
        raise UserError(f"cache_implementation={cache_implementation!r}: only dynamic caches can be fused")


def check_finite(fused: Tensor, members: Mapping[str, Tensor], real: Tensor, rule: Rule | None) -> None:
    """UserError, naming the member or the rule, where `fused` [B, K, V] is no answer at a position of `real` [B, K].

    `members` are the logits [B, K, V] by role. A token may be ruled out (-inf); padding may give anything.
    """
    broken = _undefined(fused) & real.to(fused.device).bool()
    if not broken.any():
        return
    row = int(broken.any(dim=1).nonzero()[0])
    at_fault = [role for role, logits in members.items() if (_undefined(logits) & broken).any()]
    if not at_fault:
        raise UserError(
            f"{type(rule).__name__} made NaN or infinite logits of the members' finite ones in row {row} of the batch"
        )
    raise UserError(
        f"{at_fault[0]} gives NaN or infinite logits in row {row} of the batch: "
        "its weights are damaged, or overflow in their dtype (float16 does; try bfloat16 or float32)"
    )


def _undefined(logits: Tensor) -> Tensor:
    """Where the largest of `logits` [B, K, V] is not a number or not finite, [B, K]."""
    return ~logits.amax(dim=-1).isfinite()
