"""Copies of members that vLLM can't hold as they are: adapters merged into their model, narrow heads padded.

Some kernels know only a few widths of attention heads. Heads padded with zeros leave the model's logits the same.
Shapes: n heads of d numbers, D >= d the new width, H the hidden size.

    scores   q . k / sqrt(d)              stay when q is multiplied by sqrt(D / d) and scores are divided by sqrt(D)
    rotary   the pair (i, i + d/2) turns by position * theta^(-2i/d); it moves to (i, i + D/2), which turns by
             position * theta'^(-2i/D): equal for theta' = theta^(D/d)
"""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import replace
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from proxytune.atomic import atomic_folder
from proxytune.engines.vllm.settings import Place
from proxytune.folders import cache_root
from proxytune.models.family import Source
from proxytune.models.loading.files import identity
from proxytune.models.loading.modules import load_modules
from proxytune.models.loading.tokenizers import load_tokenizers
from proxytune.provenance import digest

log = logging.getLogger(__name__)


def place_of(role: str, source: Source, head_width: int | None = None) -> Place:
    """Where vLLM finds the member: its own folder or hub id, or the folder of a copy.

    vLLM's own LoRA knows one adapter a request and no weights of it apart from the model's, and a fused model needs the
    logits with and without the adapter side by side. Merging rounds to the number type of the model.

    Args:
        head_width: what the attention heads are padded to; None: they stay.
    """
    if source.adapter is None and head_width is None:
        return Place(source.module.path, source.revision)
    padded = [] if head_width is None else [f"heads of {head_width}".encode()]
    folder = cache_root() / "merged" / digest([identity(source).encode(), *padded])[:16]
    if not folder.is_dir():
        log.info("%s: %s, in a copy in %s", role, _changes(source, head_width), folder)
        atomic_folder(folder, lambda draft: _copy(role, source, head_width, draft))
    return Place(str(folder))


def _changes(source: Source, head_width: int | None) -> str:
    merged = [] if source.adapter is None else [f"adapter {source.adapter!r} merged into {source.path!r}"]
    return ", ".join([*merged, *([] if head_width is None else [f"attention heads padded to {head_width} numbers"])])


def _copy(role: str, source: Source, head_width: int | None, folder: Path) -> None:
    plain = replace(source, device_map="cpu")
    module, _ = load_modules({role: plain})[role]
    model: PreTrainedModel = module.merge_and_unload() if isinstance(module, PeftModel) else module
    if head_width is not None:
        model = pad_heads(model, head_width)
    model.save_pretrained(folder)
    load_tokenizers({role: source})[role].save_pretrained(folder)


_KINDS = ("llama", "qwen2")
"""Whose attention is q, k, v, rotary positions over whole heads, o, and nothing else."""


def head_width(config: PreTrainedConfig) -> int:
    """d: the numbers of an attention head."""
    text = config.get_text_config()
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


def paddable(config: PreTrainedConfig) -> bool:
    """Whether `pad_heads` knows the architecture and its positions."""
    rotary = getattr(config, "rope_parameters", None) or {}
    return config.model_type in _KINDS and rotary.get("rope_type") == "default" and "rope_theta" in rotary


def pad_heads(model: PreTrainedModel, width: int) -> PreTrainedModel:
    """The same model with heads of `width` numbers, for a model that is `paddable`."""
    config = copy.deepcopy(model.config)
    old = head_width(config)
    config.head_dim = width
    config.rope_parameters["rope_theta"] **= width / old
    padded = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    padded.load_state_dict({name: _padded(name, weight, old, width) for name, weight in model.state_dict().items()})
    return padded.eval()


def _padded(name: str, weight: Tensor, old: int, width: int) -> Tensor:
    part = name.split(".")[-2]
    if part == "q_proj":
        return _spread(weight * math.sqrt(width / old), old, width)
    if part == "k_proj":
        return _spread(weight, old, width)
    if part == "v_proj":
        return _lengthened(weight, old, width)
    if part == "o_proj" and weight.dim() == 2:
        return _lengthened(weight.T, old, width).T.contiguous()
    return weight


def _spread(weight: Tensor, old: int, width: int) -> Tensor:
    """[n d, ...] to [n D, ...], the halves of each head to the starts of its new halves."""
    return _lengthened(weight, old // 2, width // 2)


def _lengthened(weight: Tensor, old: int, width: int) -> Tensor:
    """[n d, ...] to [n D, ...] with zeros after each `old` rows."""
    blocks = weight.reshape(-1, old, *weight.shape[1:])
    padding = blocks.new_zeros(len(blocks), width - old, *weight.shape[1:])
    return torch.cat([blocks, padding], dim=1).flatten(0, 1)
