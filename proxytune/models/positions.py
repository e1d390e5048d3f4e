"""How many positions a model reads, from its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def window(config: PreTrainedConfig) -> int | None:
    """Positions that the model reads as it was made to; None where its configuration does not say.

    Of rotary embeddings that are stretched (yarn, linear) it is the stretched window, unless each kind of layer has
    embeddings of its own: such configurations give the stretched window themselves. Others end at their `boundary`.
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
    """Positions beyond which what a row means depends on the other rows of its batch; None: it never does.

    LongRoPE and dynamic NTK choose their rotary factors by the longest row of a batch, and keys in a cache keep the
    factors of the time when they were read.
    """
    text = config.get_text_config()
    found = [_boundary(rope, text) for rope in _ropes(getattr(text, "rope_parameters", None) or {})]
    return min((end for end in found if end is not None), default=None)


def _ropes(parameters: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The one set of parameters, or those of each kind of layer."""
    nested = [part for part in parameters.values() if isinstance(part, Mapping)]
    return nested or [parameters]


def alibi(config: PreTrainedConfig) -> bool:
    """Whether positions are a bias that the model makes of the padding: it takes no other mask."""
    return config.model_type == "bloom" or getattr(config, "alibi", False)


def _boundary(rope: Mapping[str, Any], config: PreTrainedConfig) -> int | None:
    kind = rope.get("rope_type") or ""
    if kind == "longrope":
        return rope["original_max_position_embeddings"]
    return getattr(config, "max_position_embeddings", None) if "dynamic" in kind else None
