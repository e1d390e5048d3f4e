"""From a FamilySpec to an Ensemble: all is checked first, equal sources share one module, adapters are switched."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from peft import PeftConfig, PeftModel, PeftModelForCausalLM
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.quantizers import AutoQuantizationConfig

from proxytune.errors import UserError
from proxytune.models.chat import ChatPrompt
from proxytune.models.ensemble import Ensemble
from proxytune.models.family import FamilySpec, Source
from proxytune.models.loading.attention import share_keys
from proxytune.models.loading.checks import check, check_sources, chosen
from proxytune.models.loading.files import hub_errors, identity
from proxytune.models.loading.memory import check_memory
from proxytune.models.member import ADAPTERS_OFF, Member
from proxytune.models.vocabulary import MissingTokens, check_head, missing_tokens, unknown_token, vocabulary_size

Module = PreTrainedModel | PeftModel
AdapterNames = dict[tuple[str, str | None] | None, str]
"""PEFT's name of an adapter by (adapter, revision)."""


def load(spec: FamilySpec | Mapping[str, Any], roles: Iterable[str] | None = None) -> Ensemble:
    """The members of `roles` (all of the family if None), checked, aligned to the base's vocabulary, in eval mode.

    Sources that differ only in their adapter share one module: a `PeftModel` whose adapters are switched per role.
    Raises UserError for anything a user can mend, before weights are read where it can be known.
    """
    spec = FamilySpec.of(spec)
    sources = chosen(spec, roles)
    check(spec, roles)
    tokenizers = load_tokenizers({"base": spec.base, **sources})
    base = tokenizers["base"]
    return Ensemble(load_members(sources, tokenizers, base, spec.missing_tokens), base)


def load_for_tuning(role: str, source: Source) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer of one source, to be trained in the place of `role`.

    Raises UserError as `check_tunable` and `load` do.
    """
    check_tunable(role, source)
    tokenizer = load_tokenizers({role: source})[role]
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and source.device_map is None:
        source = replace(source, device_map="cpu")  # the trainer moves it to the device of each process
    model = _load_module(role, source)
    return model.requires_grad_(True), tokenizer


def check_tunable(role: str, source: Source) -> None:
    """Raises UserError for a source with an adapter, a quantisation config or a chat prompt, or that is not there."""
    if source.adapter is not None or source.quantization is not None:
        raise UserError(f"{role}: training starts from plain weights, without an adapter or a quantisation config.")
    if source.chat is not None:
        raise UserError(f"{role}: training is on plain prompts; models.{role}.chat has no effect: remove it.")
    check_sources({role: source})


def load_members(
    sources: Mapping[str, Source],
    tokenizers: Mapping[str, PreTrainedTokenizerBase],
    base: PreTrainedTokenizerBase,
    policy: MissingTokens = "refuse",
) -> dict[str, Member]:
    """Members by role, aligned to the vocabulary of `base` before any weights are read."""
    missing = {role: missing_tokens(base, tokenizers[role], role, policy) for role in sources}
    check_memory(sources)
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
            render=None if source.chat is None else ChatPrompt.of(source.chat, tokenizers[role], role),
            identity=identity(source),
            tokenizer=tokenizers[role],
            missing=missing[role],
            unknown=unknown_token(tokenizers[role]) if missing[role] else 0,
        )
    return members


def load_tokenizers(sources: Mapping[str, Source]) -> dict[str, PreTrainedTokenizerBase]:
    """Tokenizers by role; each is read once."""
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
            if source.gguf_file is not None:
                loaded[key] = _without_invented_tokens(loaded[key])
        tokenizers[role] = loaded[key]
    return tokenizers


def _without_invented_tokens(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A GGUF file lists every token; transformers adds default special tokens beyond the list, which no head knows."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    listed = [token for token in state["added_tokens"] if token["id"] < tokenizer.vocab_size]
    if len(listed) == len(state["added_tokens"]):
        return tokenizer
    real = {token for token, i in tokenizer.get_vocab().items() if i < tokenizer.vocab_size}
    special = {name: token for name, token in tokenizer.special_tokens_map.items() if token in real}
    plain = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state | {"added_tokens": listed})),
        name_or_path=tokenizer.name_or_path,
        clean_up_tokenization_spaces=False,
        **special,
    )
    plain.chat_template = tokenizer.chat_template
    return plain


def _adapter(source: Source) -> tuple[str, str | None] | None:
    return None if source.adapter is None else (source.adapter, source.adapter_revision)


def _modules(sources: Mapping[str, Source]) -> tuple[dict[Source, Module], dict[Source, AdapterNames]]:
    """One module per distinct `Source.module`, and the PEFT names of the adapters on it."""
    modules: dict[Source, Module] = {}
    adapters: dict[Source, AdapterNames] = {}
    for role, source in sources.items():
        if source.module not in modules:
            module = modules[source.module] = _load_module(role, source)
            if source.attn_implementation is None:
                share_keys(module)
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
            max_memory=source.max_memory,
            quantization_config=_quantization(source),
            trust_remote_code=source.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
        )
    if info["missing_keys"]:
        lacking = sorted(info["missing_keys"])
        raise UserError(f"{role}: the weights of {source.path!r} lack {len(lacking)} tensors, first {lacking[0]!r}.")
    if source.gguf_file is not None:
        # Plain weights now, but transformers still calls them quantised: they could not be moved, saved or tuned.
        model.is_quantized, model.hf_quantizer = False, None
        del model.config.quantization_config
    return model.eval().requires_grad_(False)


def _quantization(source: Source) -> Any:
    return None if source.quantization is None else AutoQuantizationConfig.from_dict(dict(source.quantization))


def _load_adapter(model: Module, role: str, source: Source, name: str) -> PeftModel:
    """Puts the adapter of `source` on `model` under `name`; UserError where it does not fit to the last tensor."""
    adapter = str(source.adapter)
    misfit = f"{role}: adapter {adapter!r} does not fit {source.path!r}: "
    with _one_line(role, source):
        config = PeftConfig.from_pretrained(adapter, revision=source.adapter_revision)
    if config.is_prompt_learning or config.is_adaption_prompt:
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
        if "trust_remote_code" in str(error) and not source.trust_remote_code:
            raise UserError(
                f"{role}: {source.path!r} needs code that comes with it, which does not run here: "
                "read that code, and if you trust it set trust_remote_code=true"
            ) from error
        raise UserError(f"{role}: can't load {source.path!r}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
