"""Attention heads padded with zeros, for kernels that know a few widths only. The model's logits stay the same.

Shapes: n heads of d numbers, D >= d the new width, H the hidden size.

    scores   q . k / sqrt(d)              stay when q is multiplied by sqrt(D / d) and scores are divided by sqrt(D)
    rotary   the pair (i, i + d/2) turns by position * theta^(-2i/d); it moves to (i, i + D/2), which turns by
             position * theta'^(-2i/D): equal for theta' = theta^(D/d)
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

_KINDS = ("llama", "qwen2")
"""Whose attention is q, k, v, rotary positions over whole heads, o, and nothing else."""


def head_width(config: PreTrainedConfig) -> int:
    """d: the numbers of an attention head."""
    text = config.get_text_config()
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


def paddable(config: PreTrainedConfig) -> bool:
    """Whether `pad_heads` knows the architecture and its positions."""
    rotary = getattr(config, "rope_parameters", None) or {}
    return config.model_type in _KINDS and rotary.get("rope_type") == "default" and "rope_theta" in rotary


def pad_heads(model: PreTrainedModel, width: int) -> PreTrainedModel:
    """The same model with heads of `width` numbers, for a model that is `paddable`."""
    config = copy.deepcopy(model.config)
    old = head_width(config)
    config.head_dim = width
    config.rope_parameters["rope_theta"] **= width / old
    padded = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    padded.load_state_dict({name: _padded(name, weight, old, width) for name, weight in model.state_dict().items()})
    return padded.eval()


def _padded(name: str, weight: Tensor, old: int, width: int) -> Tensor:
    part = name.split(".")[-2]
    if part == "q_proj":
        return _spread(weight * math.sqrt(width / old), old, width)
    if part == "k_proj":
        return _spread(weight, old, width)
    if part == "v_proj":
        return _lengthened(weight, old, width)
    if part == "o_proj" and weight.dim() == 2:
        return _lengthened(weight.T, old, width).T.contiguous()
    return weight


def _spread(weight: Tensor, old: int, width: int) -> Tensor:
    """[n d, ...] to [n D, ...], the halves of each head to the starts of its new halves."""
    return _lengthened(weight, old // 2, width // 2)


def _lengthened(weight: Tensor, old: int, width: int) -> Tensor:
    """[n d, ...] to [n D, ...] with zeros after each `old` rows."""
    blocks = weight.reshape(-1, old, *weight.shape[1:])
    padding = blocks.new_zeros(len(blocks), width - old, *weight.shape[1:])
    return torch.cat([blocks, padding], dim=1).flatten(0, 1)
