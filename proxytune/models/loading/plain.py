"""Models whose own files say enough, without transformers' classes for their configuration and tokenizer.

Importing such a class brings all of transformers' generation and half of torch's compiler, about 3 s: more than all the
rest of a run whose answers are stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from proxytune.models.family import Source
from proxytune.models.loading.files import locate, read_json

_PLAIN_ROPE = {"rope_theta", "rope_type"}
_NESTED = {"text_config", "quantization_config", "auto_map"}


@dataclass(frozen=True)
class Stated:
    """What answers and their keys need of a model's configuration."""

    window: int | None
    dtype: torch.dtype | None
    """Of the loaded weights; None where it takes these to know."""


def stated(source: Source) -> Stated | None:
    """Window and number type of a plain Llama; None for any other model."""
    config = _config(source)
    if config is None:
        return None
    dtype = config["dtype"] if source.dtype == "auto" else source.dtype
    return Stated(config["max_position_embeddings"], getattr(torch, dtype))


def has_plain_tokenizer(source: Source) -> bool:
    """Whether it is a plain Llama whose tokenizer is all in tokenizer.json, as `PreTrainedTokenizerFast` reads it.

    For other kinds of models transformers knows better than their files which class to take.
    """
    if _config(source) is None or locate(source.module.path, "tokenizer.json", source.revision) is None:
        return False
    settings = _json(source, "tokenizer_config.json")
    return settings.get("tokenizer_class") == "TokenizersBackend" and "auto_map" not in settings


def _config(source: Source) -> Mapping[str, Any] | None:
    """The configuration of a Llama with unstretched rotary embeddings, as transformers 5 writes it; None: another."""
    if source.gguf_file is not None or source.quantization is not None or source.trust_remote_code:
        return None
    config = _json(source, "config.json")
    rope = config.get("rope_parameters")
    plain = (
        config.get("model_type") == "llama"
        and not _NESTED & {*config}
        and isinstance(rope, Mapping)
        and rope.get("rope_type") == "default"
        and {*rope} <= _PLAIN_ROPE
        and isinstance(config.get("max_position_embeddings"), int)
        and isinstance(getattr(torch, str(config.get("dtype")), None), torch.dtype)
    )
    return config if plain else None


def _json(source: Source, name: str) -> Mapping[str, Any]:
    file = locate(source.module.path, name, source.revision)
    return {} if file is None else read_json(file)
