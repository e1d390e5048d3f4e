"""One member's own view of vLLM's configuration, which vLLM only derives from the first member."""

from __future__ import annotations

import copy

from transformers import PreTrainedConfig
from vllm.config import CacheConfig, VllmConfig
from vllm.config.quantization import ONLINE_QUANT_SHORTHAND_NAMES
from vllm.transformers_utils.config import get_config, get_hf_text_config

from proxytune.engines.vllm.settings import Place


def member_config(config: VllmConfig, place: Place, key: str) -> VllmConfig:
    """`config` for the model at `place`. `key` names the member: unique, without dots and not a number.

    `with_hf_config` leaves four things as they are for the first member, each of which gives wrong answers:

    - the sliding window of the KV cache, which would apply to full attention and be lost where the first has none;
    - the text configuration, from which heads and sizes are read;
    - the quantisation;
    - the key under which compiled code is cached: members of equal shape would load each other's code, and with it the
      names of each other's KV caches.
    """
    hf_config = get_config(place.path, trust_remote_code=False, revision=place.revision)
    own = config.with_hf_config(hf_config)
    model = own.model_config
    model.model, model.revision = place.path, place.revision
    model.hf_text_config = get_hf_text_config(hf_config)
    model.model_arch_config = model.get_model_arch_config()
    if place.path != config.model_config.model:  # vLLM itself has chosen the kernels of the first
        stored = (model.model_arch_config.quantization_config or {}).get("quant_method")
        model.quantization = stored or _while_loading(config)
        model.quantization_config = None if stored else config.model_config.quantization_config
        own.quant_config = VllmConfig.get_quantization_config(model, own.load_config)
    own.cache_config = _cache_config(config.cache_config, model.hf_text_config, model.get_sliding_window())
    own.additional_config = {**config.additional_config, "proxytune_member": key}
    return own


def _while_loading(config: VllmConfig) -> str | None:
    """How all members are quantised while they load; None where only the first is, or none."""
    method = config.model_config.quantization
    return method if method in ONLINE_QUANT_SHORTHAND_NAMES else None


def _cache_config(cache: CacheConfig, text_config: PreTrainedConfig, window: int | None) -> CacheConfig:
    """With the sliding window by vLLM's own rule: that of models whose layers all slide; others say it layer by
    layer."""
    layers = getattr(text_config, "layer_types", None)
    own = copy.copy(cache)
    own.sliding_window = window if layers is None or all(kind == "sliding_attention" for kind in layers) else None
    return own
