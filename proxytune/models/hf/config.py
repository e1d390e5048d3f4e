"""What a FusedCausalLM is described by, and what one forward pass of it gives. Shapes as in `causal_lm.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import PreTrainedConfig
from transformers.modeling_outputs import CausalLMOutputWithPast


class FusedConfig(PreTrainedConfig):
    """What a saved FusedCausalLM is made of."""

    model_type = "proxytune"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values", "weights"]

    family: dict[str, Any] | None = None
    """A FamilySpec as plain data; its paths are sub-folders of the saved model."""
    rule: dict[str, Any] | None = None
    """{"id": of a rule in proxytune.fusion, **parameters}; None: the base alone."""
    vocab_size: int = 0
    max_position_embeddings: int | None = None
    """Positions that every member can read."""
    use_cache: bool = True
    tie_word_embeddings: bool = False


@dataclass
class FusedOutput(CausalLMOutputWithPast):
    """What one forward pass gives: `logits` are the fused ones, [B, K, V] in float32."""

    weights: torch.FloatTensor | None = None
    """[T, B, K]: the weight of each expert at each position; `past_key_values.weights` collects them."""
