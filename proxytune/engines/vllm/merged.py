"""Adapters inside vLLM: the model and its adapter, merged into a plain model in the cache folder."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from peft import PeftModel

from proxytune.atomic import atomic_folder
from proxytune.engines.vllm.settings import Place
from proxytune.folders import cache_root
from proxytune.models.family import Source
from proxytune.models.loading.identity import identity
from proxytune.models.loading.modules import load_modules
from proxytune.models.loading.tokenizers import load_tokenizers
from proxytune.provenance import digest

log = logging.getLogger(__name__)


def place_of(role: str, source: Source) -> Place:
    """Where vLLM finds the member: its own folder or hub id, or the folder into which it was merged with its adapter.

    vLLM's own LoRA knows one adapter a request and no weights of it apart from the model's, and a fused model needs the
    logits with and without the adapter side by side. Merging rounds to the number type of the model.
    """
    if source.adapter is None:
        return Place(source.module.path, source.revision)
    folder = cache_root() / "merged" / digest([identity(source).encode()])[:16]
    if not folder.is_dir():
        log.info("%s: merging adapter %r into a copy of %r in %s", role, source.adapter, source.path, folder)
        atomic_folder(folder, lambda draft: _merge(role, source, draft))
    return Place(str(folder))


def _merge(role: str, source: Source, folder: Path) -> None:
    plain = replace(source, device_map="cpu")
    module, _ = load_modules({role: plain})[role]
    assert isinstance(module, PeftModel)
    module.merge_and_unload().save_pretrained(folder)
    load_tokenizers({role: source})[role].save_pretrained(folder)
