"""What can be known about a family before any weights are read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from proxytune.errors import UserError, unknown_name
from proxytune.models.api.endpoint import Endpoint
from proxytune.models.family import FamilySpec, Source, is_local
from proxytune.models.hf.config import FusedConfig
from proxytune.models.loading.files import locate, read_json


def check(spec: FamilySpec | Mapping[str, Any], roles: Iterable[str] | None = None) -> None:
    """Raises UserError for what can be known without reading weights: missing folders, files, adapters, pickles."""
    spec = FamilySpec.of(spec)
    check_sources({"base": spec.base, **chosen(spec, roles)})


def check_sources(sources: Mapping[str, Source | Endpoint]) -> None:
    """`check` for sources by role. An endpoint is not asked yet."""
    for role, source in sources.items():
        try:
            if isinstance(source, Endpoint):
                continue
            _check_device(source)
            _check_model(source)
            if source.adapter is not None:
                _check_adapter(source.adapter, source)
        except UserError as error:
            raise UserError(f"{role}: {error}") from error


def chosen(spec: FamilySpec, roles: Iterable[str] | None) -> dict[str, Source | Endpoint]:
    """The sources of `roles` (all if None) in the family's order."""
    sources = spec.sources
    wanted = set(sources if roles is None else roles)
    for role in sorted(wanted - sources.keys()):
        raise unknown_name("role", role, sources)
    return {role: source for role, source in sources.items() if role in wanted}


def _check_device(source: Source) -> None:
    kind = (source.device_map or "").partition(":")[0]
    if (kind == "cuda" and not torch.cuda.is_available()) or (kind == "mps" and not torch.backends.mps.is_available()):
        raise UserError(f"device_map={source.device_map}, but torch finds no such device here: leave device_map out")


def _check_model(source: Source) -> None:
    path, revision = source.path, source.revision
    if is_local(path) and not Path(path).expanduser().is_dir():
        raise UserError(f"no such folder: {path!r}")
    if source.gguf_file is not None:
        if locate(path, source.gguf_file, revision) is None:
            raise UserError(f"{path!r} has no file {source.gguf_file!r}")
        return
    adapter_config = locate(path, "adapter_config.json", revision) if is_local(path) else None
    if adapter_config is not None:
        over = read_json(adapter_config).get("base_model_name_or_path")
        raise UserError(f"{path!r} is an adapter: set path to its base model ({over!r}) and adapter to it")
    config = locate(path, "config.json", revision)
    if config is None:
        raise UserError(f"{path!r} has no config.json: it is not a transformers model")
    if read_json(config).get("model_type") == FusedConfig.model_type:
        raise UserError(
            f"{path!r} is a saved FusedCausalLM, a whole family and not one model (its sub-folders are): load it with "
            f"FusedCausalLM.from_pretrained, or in proxytune lm-eval with --model_args pretrained={path}"
        )
    if is_local(path) and not any(Path(path).expanduser().glob("*.safetensors")):
        raise UserError(
            f"{path!r} has no .safetensors weights. Pickled weights (.bin, .pt) are not read: "
            "save the model again with transformers, which writes safetensors"
        )


def _check_adapter(adapter: str, source: Source) -> None:
    from proxytune.models.loading.adapters import check_adapter  # takes seconds, and most models have none

    if is_local(adapter) and not Path(adapter).expanduser().is_dir():
        raise UserError(f"no such adapter folder: {adapter!r}")
    config = locate(adapter, "adapter_config.json", source.adapter_revision)
    if config is None:
        raise UserError(f"{adapter!r} has no adapter_config.json: it is not a PEFT adapter")
    if locate(adapter, "adapter_model.safetensors", source.adapter_revision) is None:
        raise UserError(f"adapter {adapter!r} has no adapter_model.safetensors; pickled weights are not read")
    check_adapter(source)
    over = read_json(config).get("base_model_name_or_path")
    if over and _differ(over, source.path):
        raise UserError(
            f"adapter {adapter!r} was tuned from {over!r}, not from {source.path!r}: use it over its own base. "
            "If the two are the same model, name this one in a copy of the adapter's adapter_config.json"
        )


def _differ(over: str, path: str) -> bool:
    """Whether an adapter's base and `path` are known to differ: hub ids of other names. Folder names say nothing."""
    return not is_local(over) and not is_local(path) and _name(over) != _name(path)


def _name(hub_id: str) -> str:
    return hub_id.rsplit("/", 1)[-1].lower()
