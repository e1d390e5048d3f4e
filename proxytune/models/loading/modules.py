"""Modules of a family in memory: one for all sources that differ only in their adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from proxytune.compat.transformers import call_unquantized, quantization_config
from proxytune.errors import UserError
from proxytune.models.family import Source
from proxytune.models.loading.adapters import ADAPTERS_OFF, Module, load_adapter
from proxytune.models.loading.attention import share_keys
from proxytune.models.loading.files import source_errors


def load_modules(sources: Mapping[str, Source]) -> dict[str, tuple[Module, str | None]]:
    """By role the module and the adapter state it is used in: an adapter's name, ADAPTERS_OFF, or None without any."""
    modules: dict[Source, Module] = {}
    names: dict[tuple[Source, str, str | None], str] = {}
    for role, source in sources.items():
        if source.module not in modules:
            module = modules[source.module] = load_module(role, source)
            if source.attn_implementation is None:
                share_keys(module)
        if source.adapter is not None and _adapter(source) not in names:
            names[_adapter(source)] = name = f"adapter{len(names)}"
            modules[source.module] = load_adapter(modules[source.module], role, source, name)
    shared = {module for module, _, _ in names}
    states = {r: names.get(_adapter(s), ADAPTERS_OFF) if s.module in shared else None for r, s in sources.items()}
    return {role: (modules[source.module], states[role]) for role, source in sources.items()}


def _adapter(source: Source) -> tuple[Source, str, str | None]:
    return source.module, source.adapter or "", source.adapter_revision


def load_module(role: str, source: Source) -> PreTrainedModel:
    """The module of `source` in eval mode, without gradients. Raises UserError, one line that names `role`."""
    device_map = source.device_map or ("cuda:0" if torch.cuda.is_available() else "cpu")
    auto: Any = AutoModelForCausalLM
    with source_errors(role, source):
        model, info = auto.from_pretrained(
            source.module.path,
            revision=source.revision,
            gguf_file=source.gguf_file,
            dtype=source.dtype,
            device_map=device_map,
            attn_implementation=source.attn_implementation,
            max_memory=source.max_memory,
            quantization_config=None if source.quantization is None else quantization_config(source.quantization),
            trust_remote_code=source.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
        )
    if lacking := sorted(info["missing_keys"]):
        raise UserError(f"{role}: the weights of {source.path!r} lack {len(lacking)} tensors, first {lacking[0]!r}")
    if source.gguf_file is not None:
        call_unquantized(model)
    return model.eval().requires_grad_(False)
