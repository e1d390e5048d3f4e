"""LoRA experts over a module that other members use too, so that all of them go through its weights together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftType
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedConfig

from proxytune.engines.vllm.settings import Place
from proxytune.models.family import Source
from proxytune.models.loading.adapters import adapter_config, alters
from proxytune.models.loading.files import locate

_KINDS = ("llama", "mistral", "qwen2")
_WEIGHT = re.compile(
    r"base_model\.model\.(model\.layers\.\d+\.(?:self_attn\.[qkvo]|mlp\.(?:gate|up|down))_proj)\.lora_([AB])\.weight"
)
_OTHER_FORMS = ("use_dora", "lora_bias", "rank_pattern", "alpha_pattern", "modules_to_save", "target_parameters")
"""Settings that make more of LoRA than a product of two matrices with one scale."""


class Lora(NamedTuple):
    """What an adapter adds to a linear layer: x -> B A x."""

    module: str
    a: Tensor
    """[rank, inputs]"""
    b: Tensor
    """[outputs, rank], times the adapter's scale."""


def is_plain_lora(source: Source, config: PreTrainedConfig) -> bool:
    """Whether the adapter of `source` is a sum of `Lora` on linear layers that vLLM has under known names."""
    adapter = adapter_config(source)
    if config.model_type not in _KINDS or adapter.peft_type != PeftType.LORA or alters(adapter):
        return False
    if any(getattr(adapter, name, None) for name in _OTHER_FORMS):
        return False
    file = _file(source)
    if file is None:
        return False
    with safe_open(file, "pt") as weights:
        return all(map(_WEIGHT.fullmatch, weights.keys()))


def lora_weights(place: Place) -> Iterator[Lora]:
    """The adapter of `place`, which `is_plain_lora`."""
    source = Source(place.path, adapter=place.adapter, adapter_revision=place.adapter_revision)
    settings: Any = adapter_config(source)
    scale = settings.lora_alpha / (settings.r**0.5 if settings.use_rslora else settings.r)
    with safe_open(_file(source), "pt") as weights:
        for key in list(weights.keys()):
            found = _WEIGHT.fullmatch(key)
            if found is not None and found[2] == "A":
                b = weights.get_tensor(key.replace("lora_A", "lora_B"))
                yield Lora(found[1], weights.get_tensor(key), scale * b)


def _file(source: Source) -> Path | None:
    return locate(str(source.adapter), "adapter_model.safetensors", source.adapter_revision)


def add_lora(model: nn.Module, weights: Iterable[Lora], part: int, parts: int) -> None:
    """The rows of `part`, of `parts` equal ones that `model` reads together, get the adapter; the others do not."""
    packed: dict[str, Sequence[str]] = getattr(model, "packed_modules_mapping", {})
    wholes = {piece: (whole, i) for whole, pieces in packed.items() for i, piece in enumerate(pieces)}
    for module, a, b in weights:
        layer, _, piece = module.rpartition(".")
        whole, place = wholes.get(piece, (piece, 0))
        linear: Any = model.get_submodule(f"{layer}.{whole}")
        start = sum(linear.output_sizes[:place]) if place else 0
        where = next(linear.parameters())
        linear.register_forward_hook(_Added(a.to(where), b.to(where), part, parts, start))


class _Added:
    """A forward hook: adds x A^T B^T to the rows of a part, from column `start` of the layer's outputs on."""

    def __init__(self, a: Tensor, b: Tensor, part: int, parts: int, start: int) -> None:
        self.a, self.b, self.part, self.parts = a, b, part, parts
        self.columns = slice(start, start + len(b))

    @torch.no_grad()
    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        whole, bias = outputs
        count = len(whole) // self.parts
        rows = slice(self.part * count, (self.part + 1) * count)
        whole[rows, self.columns] += inputs[0][rows] @ self.a.T @ self.b.T
        return whole, bias


class PartedAttention(nn.Module):
    """The attention of several members, each over its own KV cache, for a module that reads their rows together."""

    def __init__(self, parts: Iterable[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        chunks = zip(*(tensor.chunk(len(self.parts)) for tensor in (query, key, value)), strict=True)
        return torch.cat([attention(*chunk) for attention, chunk in zip(self.parts, chunks, strict=True)])


def share_attention(model: nn.Module, others: Sequence[nn.Module], kind: type[nn.Module]) -> None:
    """`model` gets the attention layers (class `kind`) of `others` beside its own; nothing else of `others` is kept."""
    layers = [dict(other.named_modules()) for other in others]
    for name, module in list(model.named_modules()):
        if isinstance(module, kind):
            parent, _, attribute = name.rpartition(".")
            parts = PartedAttention([module, *(layer[name] for layer in layers)])
            setattr(model.get_submodule(parent), attribute, parts)
