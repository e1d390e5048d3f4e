"""The modules of a family in memory: one for all sources that differ only in their adapter."""

from __future__ import annotations

import logging
import re
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, PreTrainedModel

from proxytune.compat.transformers import (
    GROUPED,
    attention_of,
    call_unquantized,
    quantization_config,
    sdpa_attention,
    sdpa_mask,
)
from proxytune.errors import UserError
from proxytune.models.family import Source
from proxytune.models.loading.adapters import ADAPTERS_OFF, Module, hashes, load_adapter, modules_of, needs_others_first
from proxytune.models.loading.files import read_source, source_errors
from proxytune.models.loading.memory import device_for

log = logging.getLogger(__name__)

"""The name of `grouped` among transformers' kinds of attention."""
_BUFFERS = re.compile(
    r"(^|\.)(((attn|attention|self_attention)\.(masked_)?bias)|causal_mask|position_ids"
    r"|rotary_emb\.(inv_freq|cos_cached|sin_cached))$"
)
"""Tensors in files of older releases (the first GPT-2, say) that models now compute; not every architecture says so."""


def load_modules(sources: Mapping[str, Source]) -> dict[str, tuple[Module, str | None]]:
    """By role the module and the adapter state it is used in: an adapter's name, ADAPTERS_OFF, or None without any."""
    groups: dict[Hashable, dict[str, Source]] = {}
    for role, key in modules_of(sources).items():
        groups.setdefault(key, {})[role] = sources[role]
    loaded = {role: used for key, group in groups.items() for role, used in _load_group(key, group).items()}
    return {role: loaded[role] for role in sources}


def _load_group(key: Hashable, sources: Mapping[str, Source]) -> dict[str, tuple[Module, str | None]]:
    """One module for all `sources`, with their adapters on it."""
    role, source = next(iter(sources.items()))
    if key != source.module:
        log.info(
            "%s: adapter %r gets a module of its own: it changes the weights under it, or is of a type of its own",
            role,
            source.adapter,
        )
    plain = load_module(role, source)
    if source.attn_implementation is None:
        share_keys(plain)
    model: Module = plain
    given = [(s.adapter, s.adapter_revision) for s in sources.values()]
    before = hashes(model) if len(set(given)) > 1 else {}
    names: dict[tuple[str | None, str | None], str] = {}
    for role, source in sorted(sources.items(), key=lambda item: needs_others_first(item[1])):
        adapter = source.adapter, source.adapter_revision
        if source.adapter is not None and adapter not in names:
            names[adapter] = name = f"adapter{len(names)}"
            model = load_adapter(model, role, source, name)
    if before:
        _check_unchanged(before, hashes(model), sources)
    states = [names.get(adapter, ADAPTERS_OFF if names else None) for adapter in given]
    return {role: (model, state) for role, state in zip(sources, states, strict=True)}


def _check_unchanged(before: Mapping[str, str], after: Mapping[str, str], roles: Iterable[str]) -> None:
    """UserError where an adapter has changed the module's own weights, though `modules_of` did not foresee it."""
    if changed := [name for name in before if after.get(name) != before[name]]:
        raise UserError(
            f"{', '.join(roles)}: an adapter has changed {changed[0]!r} of the module that they share, so that "
            "switching it off does not give the plain model: give each a copy of the model's folder as path"
        )


def load_module(role: str, source: Source) -> PreTrainedModel:
    """The module of `source` in eval mode, without gradients. Raises UserError, one line that names `role`."""
    with source_errors(role, source):
        quantization = None if source.quantization is None else quantization_config(source.quantization)
    model, info = read_source(
        AutoModelForCausalLM,
        role,
        source,
        dtype=source.dtype,
        device_map=device_for(source),
        attn_implementation=source.attn_implementation,
        max_memory=source.max_memory,
        quantization_config=quantization,
        use_safetensors=True,
        output_loading_info=True,
    )
    if lacking := sorted(info["missing_keys"]):
        raise UserError(f"{role}: the weights of {source.path!r} lack {len(lacking)} tensors, first {lacking[0]!r}")
    if unread := sorted(name for name in info["unexpected_keys"] if not _BUFFERS.search(name)):
        raise UserError(
            f"{role}: {source.path!r} holds {len(unread)} tensors, first {unread[0]!r}, for which the model of its "
            "config.json has no place: restore the config.json that the weights were saved with"
        )
    if source.gguf_file is not None:
        call_unquantized(model)
    return model.eval().requires_grad_(False)


def share_keys(model: PreTrainedModel) -> None:
    """Lets a model that runs on the CPU with transformers' "sdpa" attention read shared keys where they are."""
    if model.device.type == "cpu" and attention_of(model) == "sdpa":
        model.set_attn_implementation(GROUPED)


def grouped(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """transformers' own "sdpa" without copies of shared heads: query [B, heads, t, D], key and value [B, shared, T, D].

    Where there is a mask, transformers repeats the keys and values of the whole cache for every query head, as kernels
    of GPUs need it. On a CPU these copies take much of the time of decoding; its kernel returns the same bits without.
    """
    special = kwargs.get("position_bias") is not None or kwargs.get("cache") is not None
    if special or attention_mask is None or key.shape[1] == query.shape[1]:
        return sdpa_attention(module, query, key, value, attention_mask, **kwargs)
    dropout, scale = kwargs.get("dropout", 0.0), kwargs.get("scaling")
    output = F.scaled_dot_product_attention(query, key, value, attention_mask, dropout, scale=scale, enable_gqa=True)
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(GROUPED, grouped)
AttentionMaskInterface.register(GROUPED, sdpa_mask)
