"""How many positions a model reads, from its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def window(config: PreTrainedConfig) -> int | None:
    """The number of positions that the model was made for; None if its configuration does not say.

    For stretched rotary embeddings (yarn, linear) it is the stretched window. Configurations with separate embeddings
    for each type of layer give the stretched window themselves. For other types it is their `boundary` if
    they have one.
    """
    text = config.get_text_config()
    stated = getattr(text, "max_position_embeddings", None)
    rope = getattr(text, "rope_parameters", None) or {}
    if stated is None:
        return None
    if rope.get("rope_type") == "linear":
        return int(stated * rope["factor"])
    if rope.get("rope_type") == "yarn":
        return max(stated, int(rope["original_max_position_embeddings"] * (rope.get("factor") or 1)))
    return boundary(config) or stated


def boundary(config: PreTrainedConfig) -> int | None:
    """The number of positions beyond which a row's logits depend on the other rows of its batch; None: they never do.

    LongRoPE and dynamic NTK choose their rotary factors by the longest row of a batch, and cached keys keep the
    factors in use when they were read.
    """
    text = config.get_text_config()
    found = [_boundary(rope, text) for rope in _ropes(getattr(text, "rope_parameters", None) or {})]
    return min((end for end in found if end is not None), default=None)


def _ropes(parameters: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The single set of parameters, or those of each type of layer."""
    nested = [part for part in parameters.values() if isinstance(part, Mapping)]
    return nested or [parameters]


def alibi(config: PreTrainedConfig) -> bool:
    """Whether positions enter as a bias that the model derives from the padding mask; it then accepts no other mask."""
    return config.model_type == "bloom" or getattr(config, "alibi", False)


def _boundary(rope: Mapping[str, Any], config: PreTrainedConfig) -> int | None:
    kind = rope.get("rope_type") or ""
    if kind == "longrope":
        return rope["original_max_position_embeddings"]
    return getattr(config, "max_position_embeddings", None) if "dynamic" in kind else None
