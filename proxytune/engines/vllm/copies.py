"""Copies of members that vLLM can't hold as they are: adapters merged into their model, narrow heads padded."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel

from proxytune.atomic import atomic_folder
from proxytune.engines.vllm.heads import pad_heads
from proxytune.engines.vllm.settings import Place
from proxytune.folders import cache_root
from proxytune.models.family import Source
from proxytune.models.loading.identity import identity
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
