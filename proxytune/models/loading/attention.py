"""Attention on CPUs for models whose query heads share keys and values (grouped-query attention), without copying them.

Wherever there is a mask, transformers repeats the keys and values of the whole cache for every query head, as the
kernels of GPUs want it. On a CPU the copies take much of the time of decoding; its kernel needs none and returns the
same bits.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from proxytune.compat.transformers import attention_of, sdpa_attention, sdpa_mask

GROUPED = "sdpa_grouped"


def share_keys(model: PreTrainedModel) -> None:
    """Lets a model that runs on the CPU with transformers' "sdpa" attention read shared keys where they are."""
    if model.device.type == "cpu" and attention_of(model) == "sdpa":
        model.set_attn_implementation(GROUPED)


def grouped(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """transformers' own "sdpa": query [B, heads, t, D], key and value [B, shared heads, T, D]."""
    special = kwargs.get("position_bias") is not None or kwargs.get("cache") is not None
    if special or attention_mask is None or key.shape[1] == query.shape[1]:
        return sdpa_attention(module, query, key, value, attention_mask, **kwargs)
    dropout, scale = kwargs.get("dropout", 0.0), kwargs.get("scaling")
    output = F.scaled_dot_product_attention(query, key, value, attention_mask, dropout, scale=scale, enable_gqa=True)
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(GROUPED, grouped)
AttentionMaskInterface.register(GROUPED, sdpa_mask)
