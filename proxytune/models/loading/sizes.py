"""How many bytes models take in memory, from the headers of their files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from proxytune.models.family import Source, is_local

_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2}
"""Bytes of a stored number by safetensors' name of its type; of all other types 1."""
_FLOATS = {"F64", "F32", "F16", "BF16"}


class Weight(NamedTuple):
    name: str
    shape: Sequence[int]
    size: int
    """Bytes of each number in memory."""


def weight_bytes(source: Source) -> int | None:
    """Bytes of the module's weights in memory; None where its files are not here."""
    weights = _weights(source)
    return None if weights is None else sum(math.prod(weight.shape) * weight.size for weight in weights)


def configured_bytes(source: Source) -> int:
    """`weight_bytes` from the config alone, for a model whose weights are not here."""
    config = AutoConfig.from_pretrained(source.path, revision=source.revision)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    size = _asked(source) or (config.dtype or torch.float32).itemsize
    return size * sum(weight.numel() for weight in model.parameters())


def lora_bytes(rank: int, source: Source) -> int | None:
    """Bytes of a float32 adapter of `rank` over every matrix but the embedding and the head; None where unknown."""
    weights = _weights(source)
    return None if weights is None else 4 * rank * sum(sum(weight.shape) for weight in weights if _adapted(weight))


def adapter_bytes(source: Source) -> int | None:
    """Bytes of the adapter's weights in memory, which PEFT keeps in float32; None where its file is not here."""
    assert source.adapter is not None
    file = _file(replace(source, path=source.adapter, revision=source.adapter_revision), "adapter_model.safetensors")
    return None if file is None else 4 * sum(math.prod(weight.shape) for weight in _stored(file, source))


def cache_bytes(source: Source) -> int | None:
    """Bytes of the keys and values of one token of one row; None where the config is not here."""
    file = _file(source, source.gguf_file or "config.json")
    if file is None:
        return None
    config = AutoConfig.from_pretrained(
        file.parent, gguf_file=source.gguf_file, trust_remote_code=source.trust_remote_code
    ).get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * width * (_asked(source) or (config.dtype or torch.float32).itemsize)


def _weights(source: Source) -> list[Weight] | None:
    if source.gguf_file is None:
        files = _weight_files(source)
        return None if files is None else [weight for file in files for weight in _stored(file, source)]
    file = _file(source, source.gguf_file)
    return None if file is None else [Weight(name, shape, _asked(source) or 4) for name, shape in _gguf_shapes(file)]


def _stored(file: Path, source: Source) -> Iterator[Weight]:
    with safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 (no mapping)
            tensor = tensors.get_slice(name)
            kind = tensor.get_dtype()
            size = _asked(source) if kind in _FLOATS else None
            yield Weight(name, tensor.get_shape(), size or _BYTES.get(kind, 1))


@lru_cache
def _gguf_shapes(file: Path) -> list[tuple[str, list[int]]]:
    from gguf import GGUFReader

    return [(tensor.name, [int(size) for size in tensor.shape]) for tensor in GGUFReader(file).tensors]


def _adapted(weight: Weight) -> bool:
    embeddings = any(part in weight.name for part in ("embd", "embed", "lm_head", "wte", "wpe"))
    return len(weight.shape) == 2 and not embeddings and not weight.name.startswith("output.")


def _asked(source: Source) -> int | None:
    """Bytes of a number in the type the source asks for; None: as stored."""
    return None if source.dtype == "auto" else getattr(torch, source.dtype).itemsize


def _weight_files(source: Source) -> list[Path] | None:
    single = _file(source, "model.safetensors")
    if single is not None:
        return [single]
    index = _file(source, "model.safetensors.index.json")
    return None if index is None else list(index.parent.glob("*.safetensors"))


def _file(source: Source, name: str) -> Path | None:
    if is_local(source.path):
        file = Path(source.path).expanduser() / name
        return file if file.is_file() else None
    cached = try_to_load_from_cache(source.path, name, revision=source.revision)
    return Path(cached) if isinstance(cached, str) else None
