"""From a FamilySpec to an Ensemble: everything is checked first, equal sources share one module."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from proxytune.errors import UserError
from proxytune.models.api.member import connect
from proxytune.models.chat import ChatPrompt
from proxytune.models.ensemble import Ensemble
from proxytune.models.family import FamilySpec, Source
from proxytune.models.loading.checks import check, check_sources, chosen
from proxytune.models.loading.describe import behind_endpoints, family_tokenizers, local
from proxytune.models.loading.files import identity
from proxytune.models.loading.memory import check_memory
from proxytune.models.loading.modules import load_module, load_modules
from proxytune.models.loading.tokenizers import load_tokenizers
from proxytune.models.loading.trial import check_reading
from proxytune.models.member import Member
from proxytune.models.vocabulary import MissingTokens, check_head, missing_tokens, unknown_token, vocabulary_size


def load(spec: FamilySpec | Mapping[str, Any], roles: Iterable[str] | None = None) -> Ensemble:
    """The members of `roles` (all of the family if None), checked, aligned to the base's vocabulary, in eval mode.

    Sources that differ only in their adapter share one module: a `PeftModel` whose adapters are switched per role.
    Raises UserError for anything a user can fix, before weights are read where it can be known.
    """
    spec = FamilySpec.of(spec)
    sources = chosen(spec, roles)
    check(spec, roles)
    here = local(sources)
    tokenizers = family_tokenizers(spec, here)
    base = tokenizers["base"]
    # An endpoint answers before weights are read, so that what is wrong with it is said at once.
    remote = {role: connect(facts) for role, facts in behind_endpoints(sources, tokenizers).items()}
    members = load_members(here, tokenizers, base, spec.missing_tokens)
    return Ensemble({**cast(dict[str, Member], remote), **members}, base, spec.end_tokens)


def load_members(
    sources: Mapping[str, Source],
    tokenizers: Mapping[str, PreTrainedTokenizerBase],
    base: PreTrainedTokenizerBase,
    policy: MissingTokens = "refuse",
) -> dict[str, Member]:
    """Members by role, aligned to the vocabulary of `base` before any weights are read."""
    missing = {role: missing_tokens(base, tokenizers[role], role, policy) for role in sources}
    check_memory(sources)
    modules = load_modules(sources)
    members = {}
    for role, source in sources.items():
        model, adapter = modules[role]
        check_head(model, vocabulary_size(base), missing[role], role)
        members[role] = Member(
            role,
            model,
            vocabulary_size(base),
            adapter=adapter,
            render=None if source.chat is None else ChatPrompt.of(source.chat, tokenizers[role], role),
            identity=identity(source),
            tokenizer=tokenizers[role],
            missing=missing[role],
            unknown=unknown_token(tokenizers[role]) if missing[role] else 0,
        )
    check_reading(members.values())
    return members


def load_for_tuning(role: str, source: Source) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer of one source, to be trained in place of `role`.

    Raises UserError as `check_tunable` and `load` do.
    """
    check_tunable(role, source)
    tokenizer = load_tokenizers({role: source})[role]
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and source.device_map is None:
        source = replace(source, device_map="cpu")  # the trainer moves it to the device of each process
    return load_module(role, source).requires_grad_(True), tokenizer


def check_tunable(role: str, source: Source) -> None:
    """Raises UserError for a source with an adapter, a quantisation config or a chat prompt, or that is not there."""
    if source.adapter is not None or source.quantization is not None:
        raise UserError(f"{role}: training starts from plain weights, without an adapter or a quantisation config")
    if source.chat is not None:
        raise UserError(f"{role}: training is on plain prompts; models.{role}.chat has no effect: remove it")
    check_sources({role: source})
