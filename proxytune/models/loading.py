"""From a FamilySpec to an Ensemble: all is checked first, equal sources share one module, adapters are switched."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, PeftModelForCausalLM
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from proxytune.errors import UserError, unknown_name
from proxytune.models.ensemble import Ensemble
from proxytune.models.files import hub_errors, identity, locate
from proxytune.models.member import ADAPTERS_OFF, Member
from proxytune.models.sources import FamilySpec, Source, is_local
from proxytune.models.vocabulary import check_head, missing_tokens, unknown_token, vocabulary_size

Module = PreTrainedModel | PeftModel
AdapterNames = dict[tuple[str, str | None] | None, str]
"""PEFT's name of an adapter by (adapter, revision)."""


def load(spec: FamilySpec | Mapping[str, Any], roles: Iterable[str] | None = None) -> Ensemble:
    """The members of `roles` (all of the family if None), checked, aligned to the base's vocabulary, in eval mode.

    Sources that differ only in their adapter share one module: a `PeftModel` whose adapters are switched per role.
    Raises UserError for anything a user can mend, before weights are read where it can be known.
    """
    spec = FamilySpec.of(spec)
    sources = _chosen(spec, roles)
    check(spec, roles)
    tokenizers = _tokenizers({"base": spec.base, **sources})
    base = tokenizers["base"]
    missing = {role: missing_tokens(base, tokenizers[role], role, spec.missing_tokens) for role in sources}
    modules, adapters = _modules(sources)
    members = {}
    for role, source in sources.items():
        model, shared = modules[source.module], adapters[source.module]
        check_head(model, vocabulary_size(base), missing[role], role)
        members[role] = Member(
            role,
            model,
            vocabulary_size(base),
            adapter=shared.get(_adapter(source), ADAPTERS_OFF) if shared else None,
            identity=identity(source),
            tokenizer=tokenizers[role],
            missing=missing[role],
            unknown=unknown_token(tokenizers[role]) if missing[role] else 0,
        )
    return Ensemble(members, base)


def check(spec: FamilySpec | Mapping[str, Any], roles: Iterable[str] | None = None) -> None:
    """Raises UserError for what can be known without reading weights: missing folders, files, adapters, pickles."""
    spec = FamilySpec.of(spec)
    for role, source in {"base": spec.base, **_chosen(spec, roles)}.items():
        _check_model(role, source)
        if source.adapter is not None:
            _check_adapter(role, source)


def _chosen(spec: FamilySpec, roles: Iterable[str] | None) -> dict[str, Source]:
    """The sources of `roles` in the family's order."""
    sources = spec.sources
    wanted = set(sources if roles is None else roles)
    for role in sorted(wanted - sources.keys()):
        raise unknown_name("role", role, sources)
    return {role: source for role, source in sources.items() if role in wanted}


def _check_model(role: str, source: Source) -> None:
    path, revision = source.path, source.revision
    if is_local(path) and not Path(path).expanduser().is_dir():
        raise UserError(f"{role}: no such folder: {path!r}.")
    if source.gguf_file is not None:
        if locate(path, source.gguf_file, revision) is None:
            raise UserError(f"{role}: {path!r} has no file {source.gguf_file!r}.")
        return
    adapter_config = locate(path, "adapter_config.json", revision) if is_local(path) else None
    if adapter_config is not None:
        over = json.loads(adapter_config.read_text()).get("base_model_name_or_path")
        raise UserError(f"{role}: {path!r} is an adapter: set path to its base model ({over!r}) and adapter to it.")
    if locate(path, "config.json", revision) is None:
        raise UserError(f"{role}: {path!r} has no config.json: it is not a transformers model.")
    if is_local(path) and not any(Path(path).expanduser().glob("*.safetensors")):
        raise UserError(
            f"{role}: {path!r} has no .safetensors weights. Pickled weights (.bin, .pt) are not read: "
            "save the model again with transformers, which writes safetensors."
        )


def _check_adapter(role: str, source: Source) -> None:
    adapter = str(source.adapter)
    if is_local(adapter) and not Path(adapter).expanduser().is_dir():
        raise UserError(f"{role}: no such adapter folder: {adapter!r}.")
    config = locate(adapter, "adapter_config.json", source.adapter_revision)
    if config is None:
        raise UserError(f"{role}: {adapter!r} has no adapter_config.json: it is not a PEFT adapter.")
    if locate(adapter, "adapter_model.safetensors", source.adapter_revision) is None:
        raise UserError(f"{role}: adapter {adapter!r} has no adapter_model.safetensors; pickled weights are not read.")
    over = json.loads(config.read_text()).get("base_model_name_or_path")
    if over and _differ(over, source.path):
        raise UserError(
            f"{role}: adapter {adapter!r} was tuned from {over!r}, not from {source.path!r}. Use it over its own base; "
            "if the two are the same model, name this path in a copy of the adapter's adapter_config.json."
        )


def _differ(over: str, path: str) -> bool:
    """Whether an adapter's base and `path` are known to differ: by name on the hub, by config in folders."""
    if is_local(over) != is_local(path):
        return False
    if not is_local(path):
        return over.rsplit("/", 1)[-1].lower() != path.rsplit("/", 1)[-1].lower()
    configs = [Path(folder).expanduser() / "config.json" for folder in (over, path)]
    return all(config.is_file() for config in configs) and len({_shape(config) for config in configs}) > 1


def _shape(config: Path) -> str:
    """The config as text without what depends on where and by whom it was saved."""
    values = json.loads(config.read_text())
    return json.dumps({k: v for k, v in values.items() if not k.startswith("_") and "version" not in k}, sort_keys=True)


def _tokenizers(sources: Mapping[str, Source]) -> dict[str, PreTrainedTokenizerBase]:
    loaded: dict[tuple[str | None, ...], PreTrainedTokenizerBase] = {}
    tokenizers = {}
    for role, source in sources.items():
        key = (source.module.path, source.revision, source.gguf_file)
        if key not in loaded:
            with _one_line(role, source):
                loaded[key] = AutoTokenizer.from_pretrained(
                    source.module.path,
                    revision=source.revision,
                    gguf_file=source.gguf_file,
                    trust_remote_code=source.trust_remote_code,
                )
        tokenizers[role] = loaded[key]
    return tokenizers


def _adapter(source: Source) -> tuple[str, str | None] | None:
    return None if source.adapter is None else (source.adapter, source.adapter_revision)


def _modules(sources: Mapping[str, Source]) -> tuple[dict[Source, Module], dict[Source, AdapterNames]]:
    """One module per distinct `Source.module`, and the PEFT names of the adapters on it."""
    modules: dict[Source, Module] = {}
    adapters: dict[Source, AdapterNames] = {}
    for role, source in sources.items():
        if source.module not in modules:
            modules[source.module] = _load_module(role, source)
            adapters[source.module] = {}
        names = adapters[source.module]
        if source.adapter is not None and _adapter(source) not in names:
            name = f"adapter{len(names)}"
            modules[source.module] = _load_adapter(modules[source.module], role, source, name)
            names[_adapter(source)] = name
    return modules, adapters


def _load_module(role: str, source: Source) -> PreTrainedModel:
    device_map = source.device_map or ("cuda:0" if torch.cuda.is_available() else "cpu")
    auto: Any = AutoModelForCausalLM
    with _one_line(role, source):
        model, info = auto.from_pretrained(
            source.module.path,
            revision=source.revision,
            gguf_file=source.gguf_file,
            dtype=source.dtype,
            device_map=device_map,
            attn_implementation=source.attn_implementation,
            trust_remote_code=source.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
        )
    if info["missing_keys"]:
        lacking = sorted(info["missing_keys"])
        raise UserError(f"{role}: the weights of {source.path!r} lack {len(lacking)} tensors, first {lacking[0]!r}.")
    return model.eval().requires_grad_(False)


def _load_adapter(model: Module, role: str, source: Source, name: str) -> PeftModel:
    """Puts the adapter of `source` on `model` under `name`; UserError where it does not fit to the last tensor."""
    adapter = str(source.adapter)
    misfit = f"{role}: adapter {adapter!r} does not fit {source.path!r}: "
    with _one_line(role, source):
        config = PeftConfig.from_pretrained(adapter, revision=source.adapter_revision)
    if config.is_prompt_learning:
        kind = config.peft_type.value
        raise UserError(f"{role}: adapter {source.adapter!r} is of type {kind}; only weight adapters can be switched.")
    config.inference_mode = True
    try:
        if not isinstance(model, PeftModel):
            model = PeftModelForCausalLM(model, config, adapter_name=name)
        result = model.load_adapter(adapter, adapter_name=name, revision=source.adapter_revision)
    except (ValueError, RuntimeError, KeyError) as error:
        raise UserError(misfit + _first_line(error)) from error
    if lost := sorted({*result.missing_keys, *result.unexpected_keys}):
        raise UserError(misfit + f"{len(lost)} tensors have no counterpart, first {lost[0]!r}.")
    return model.eval().requires_grad_(False)


@contextmanager
def _one_line(role: str, source: Source) -> Iterator[None]:
    """Turns what transformers and the hub raise for a wrong source into one line that names the role."""
    try:
        with hub_errors(source.path, source.revision):
            yield
    except UserError as error:
        raise UserError(f"{role}: {error}") from error
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, SafetensorError) as error:
        raise UserError(f"{role}: can't load {source.path!r}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
