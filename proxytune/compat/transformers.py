"""transformers: attention, quantisation, caches, and the methods of its classes that ours override."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.generation import GenerateDecoderOnlyOutput as GenerateDecoderOnlyOutput
from transformers.generation import GenerationMode as GenerationMode
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask as sdpa_mask
from transformers.quantizers import AutoQuantizationConfig

from proxytune.compat import Name

_MODEL = "transformers.modeling_utils:PreTrainedModel"
_GENERATION = "transformers.generation.utils:GenerationMixin"
_CACHE = "transformers.cache_utils:Cache"
_TRAINER = "transformers.trainer:Trainer"
NAMES = (
    Name("transformers.configuration_utils:PreTrainedConfig", "_attn_implementation", "the attention of a model"),
    Name("transformers.configuration_utils:PreTrainedConfig", "_experts_implementation", "the same of its experts"),
    Name("transformers.integrations.sdpa_attention", "sdpa_attention_forward", "where grouped attention gains nothing"),
    Name("transformers.masking_utils", "sdpa_mask", "the masks of grouped attention"),
    Name("transformers.quantizers", "AutoQuantizationConfig", "quantisation from plain data"),
    Name(_MODEL, "hf_quantizer", "a model read from GGUF has plain weights, but is still called quantised"),
    Name(_MODEL, "is_quantized", "the same"),
    Name(_MODEL, "hf_device_map", "whether a model is spread over devices"),
    Name(_MODEL, "_hf_hook", "where an offloaded model runs"),
    Name("accelerate.hooks:AlignDevicesHook", "execution_device", "the same"),
    Name(_MODEL, "_can_compile_fullgraph", "whether a model can be one static graph"),
    Name(_MODEL, "all_tied_weights_keys", "FusedCausalLM sets it, as post_init would"),
    Name(_MODEL, "_supports_sdpa", "FusedCausalLM takes any attention its members take", overridden=True),
    Name("torch.nn.modules.module:Module", "_apply", "some members cannot be moved", overridden=True),
    Name(_GENERATION, "_prepare_cache_for_generation", "FusedCausalLM's own cache", overridden=True),
    Name(_GENERATION, "_sample", "greedy decoding and sampling with drafts", overridden=True),
    Name("transformers.generation.configuration_utils:GenerationConfig", "_pad_token_tensor", "what ends rows early"),
    Name("transformers.generation", "GenerateDecoderOnlyOutput", "what `generate` returns"),
    Name("transformers.generation", "GenerationMode", "which kind of decoding `generate` does"),
    Name(_GENERATION, "_is_user_defined", "whether a cache outlives `generate`"),
    Name(_CACHE, "layer_class_to_replicate", "FusedCache leaves out Cache.__init__"),
    Name(_CACHE, "offloading", "the same"),
    Name(_CACHE, "activate_past_recording", "an assistant's cache is cropped"),
    Name(_TRAINER, "_get_train_sampler", "the longest examples of a step come first", overridden=True),
    Name(_TRAINER, "_get_num_items_in_batch", "the weights of a step's tokens", overridden=True),
    Name(_TRAINER, "_get_output_dir", "checkpoints are drafted", overridden=True),
    Name(_TRAINER, "_save_checkpoint", "checkpoints are complete or absent", overridden=True),
)

sdpa_attention = sdpa_attention_forward
GROUPED = "sdpa_grouped"
"""The name of our attention for CPUs (`models/loading/modules.py`), which takes the masks of transformers' "sdpa"."""


def quantization_config(description: Mapping[str, object]) -> object:
    """A quantisation config of the method that `description` names."""
    return AutoQuantizationConfig.from_dict(dict(description))


def attention_of(model: PreTrainedModel) -> str:
    """The name of the attention that the model runs with."""
    return model.config._attn_implementation


def can_be_static(model: PreTrainedModel) -> bool:
    """Whether the model can read with a cache of fixed size, as one graph."""
    return model._can_compile_fullgraph


def requested_kernels(config: PreTrainedConfig) -> dict[str, str | None]:
    """The kernels that a config asks for, by the names of the arguments that set them."""
    return {
        "attn_implementation": config._attn_implementation,
        "experts_implementation": config._experts_implementation,
    }


def call_unquantized(model: Any) -> None:
    """For plain weights that were read from a quantised file: they may be moved, saved and tuned like others."""
    model.is_quantized, model.hf_quantizer = False, None
    del model.config.quantization_config


def device_of(model: nn.Module) -> torch.device:
    """The device that the model reads tokens on, also where accelerate keeps its weights elsewhere."""
    embeddings = model.get_input_embeddings() if isinstance(model, PreTrainedModel) else None
    # Asked at every step: going through all modules for the first parameter takes longer than a small layer.
    first = embeddings.weight.device if isinstance(embeddings, nn.Embedding) else next(model.parameters()).device
    if first.type != "meta":
        return first
    hooks = (getattr(module, "_hf_hook", None) for module in model.modules())
    devices = (getattr(hook, "execution_device", None) for hook in hooks)
    return next((torch.device(device) for device in devices if device is not None), first)


def is_spread(model: nn.Module) -> bool:
    """Whether the model's layers are on more than one device."""
    return len(set(getattr(model, "hf_device_map", {}).values())) > 1


def plain_sample(model: Any, input_ids: torch.Tensor, **arguments: Any) -> Any:
    """Greedy decoding or sampling as transformers does it."""
    return GenerationMixin._sample(model, cast(Any, input_ids), **arguments)


def pad_token(config: GenerationConfig) -> int:
    """What stands after the end of a row that `generate` has prepared `config` for; 0 where nothing ends one early."""
    token = config._pad_token_tensor  # type: ignore[attr-defined]
    return 0 if token is None else int(token)


def note_owner(cache: Any, user: bool) -> None:
    """Tells `generate` whether the cache was given by its caller, who will read it afterwards."""
    cache._is_user_defined = user
