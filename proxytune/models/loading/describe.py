"""A family without its weights: a run whose answers are all stored need not load any model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from proxytune.models.api.endpoint import Endpoint
from proxytune.models.chat import ChatPrompt
from proxytune.models.facts import MemberFacts, Members, ends_of
from proxytune.models.family import FamilySpec, Source
from proxytune.models.generation import ignored_settings
from proxytune.models.loading.checks import check, chosen
from proxytune.models.loading.files import identity, read_source
from proxytune.models.loading.plain import Stated, stated
from proxytune.models.loading.tokenizers import load_tokenizers
from proxytune.models.positions import window
from proxytune.models.vocabulary import MissingTokens, missing_tokens, unknown_token

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

NOT_READ = "not read"
"""In place of an identity."""


def describe(spec: FamilySpec, roles: Iterable[str] | None = None) -> Members[MemberFacts] | None:
    """What `load(spec, roles)` would know of its members; None where only their weights tell.

    Raises UserError as `load` does before it reads weights.
    """
    sources = chosen(spec, roles)
    check(spec, sources)
    here = local(sources)
    if not all(map(_is_plain, here.values())):
        return None
    family = readers(spec, sources)
    for role, source in here.items():
        if family[role].dtype is None:
            return None
        family.members[role] = replace(family[role], identity=identity(source))
    return family


def readers(spec: FamilySpec, roles: Iterable[str] | None = None) -> Members[MemberFacts]:
    """What the members of any family read, and what ends an answer: from tokenizers and configurations.

    Their identities are not looked for. Raises UserError as `load` does.
    """
    sources = chosen(spec, roles)
    here = local(sources)
    tokenizers = family_tokenizers(spec, here)
    members = {role: _facts(role, source, tokenizers, spec.missing_tokens) for role, source in here.items()}
    return Members(behind_endpoints(sources, tokenizers) | members, tokenizers["base"], spec.end_tokens)


def local(sources: Mapping[str, Source | Endpoint]) -> dict[str, Source]:
    """Those whose files are to be had."""
    return {role: source for role, source in sources.items() if isinstance(source, Source)}


def family_tokenizers(spec: FamilySpec, here: Mapping[str, Source]) -> dict[str, PreTrainedTokenizerBase]:
    """The tokenizers of the sources `here`, and the family's as that of "base"."""
    return load_tokenizers({"base": spec.vocabulary, **here})


def behind_endpoints(
    sources: Mapping[str, Source | Endpoint], tokenizers: Mapping[str, PreTrainedTokenizerBase]
) -> dict[str, Any]:
    """An `ApiFacts` for each source that is behind an endpoint."""
    remote = {role: source for role, source in sources.items() if isinstance(source, Endpoint)}
    if not remote:
        return {}
    from proxytune.models.api.member import ApiFacts

    return {role: ApiFacts(role, source, tokenizers["base"]) for role, source in remote.items()}


def _is_plain(source: Source) -> bool:
    """Whether the files next to the weights say all of it: no GGUF, quantisation or code of the model's own."""
    return source.gguf_file is None and source.quantization is None and not source.trust_remote_code


def _config(role: str, source: Source) -> PreTrainedConfig:
    from transformers import AutoConfig

    return read_source(AutoConfig, role, source)


def _dtype(source: Source, config: PreTrainedConfig) -> torch.dtype | None:
    """The number type of the loaded weights; None where it takes these to know."""
    stored = getattr(config, "quantization_config", None) is not None
    if config.get_text_config() is not config or (stored and source.dtype == "auto"):
        return None
    asked: Any = config.dtype if source.dtype == "auto" else getattr(torch, source.dtype)
    return asked


def _facts(
    role: str, source: Source, tokenizers: Mapping[str, PreTrainedTokenizerBase], policy: MissingTokens
) -> MemberFacts:
    tokenizer = tokenizers[role]
    config = cache(lambda: _config(role, source))
    known = stated(source) or Stated(window(config()), _dtype(source, config()))
    missing = missing_tokens(tokenizers["base"], tokenizer, role, policy)
    generation = _generation_config(source, config)
    return MemberFacts(
        role,
        window=known.window,
        dtype=known.dtype,
        read_config=config,
        ends=ends_of(generation.eos_token_id, tokenizer),
        identity=NOT_READ,
        tokenizer=tokenizer,
        render=None if source.chat is None else ChatPrompt.of(source.chat, tokenizer, role),
        missing=missing,
        unknown=unknown_token(tokenizer) if missing else 0,
        ignored=ignored_settings(generation),
    )


def _generation_config(source: Source, config: Callable[[], PreTrainedConfig]) -> GenerationConfig:
    """Its generation config; a model without one gets it from its config."""
    kind: Any = GenerationConfig
    try:
        return kind.from_pretrained(source.module.path, revision=source.revision)
    except OSError:
        return kind.from_model_config(config())
