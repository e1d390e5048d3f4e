"""From whatever the user has (models, members, sources, a rule) to an Ensemble and an Arm over it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

from peft import PeftModel
from torch.nn import Module
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from proxytune.console import loading_bars
from proxytune.errors import UserError
from proxytune.fusion.arm import Arm
from proxytune.fusion.rule import INPUTS, Rule, try_out
from proxytune.models.ensemble import Ensemble
from proxytune.models.family import Source
from proxytune.models.hf.config import FusedConfig
from proxytune.models.loading.checks import check_sources
from proxytune.models.loading.load import load_members
from proxytune.models.loading.tokenizers import load_tokenizers
from proxytune.models.loading.trial import check_reading
from proxytune.models.member import Member
from proxytune.models.vocabulary import MissingTokens, check_head, check_policy, vocabulary_size


@loading_bars()
def gather(
    parts: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None, policy: MissingTokens = "refuse"
) -> Ensemble:
    """The ensemble of models, members and sources by role; sources are checked and loaded, equal ones once."""
    check_policy(policy)
    sources = {role: Source.of(part, role) for role, part in parts.items() if not _in_memory(role, part)}
    check_sources(sources)
    tokenizers = load_tokenizers(sources)
    tokenizer = tokenizer or tokenizers.get("base") or getattr(parts["base"], "tokenizer", None)
    if tokenizer is None:
        raise UserError("models in memory do not say what their token ids mean: pass tokenizer=, the base's")
    loaded = load_members(sources, tokenizers, tokenizer, policy)
    given = {role: _member(role, part, tokenizer) for role, part in parts.items() if role not in loaded}
    _check_apart(given)
    check_reading(given.values())
    return Ensemble({role: loaded.get(role) or given[role] for role in parts}, tokenizer)


def by_role(base: Any, experts: Any, antiexpert: Any, rule: Rule | None) -> dict[str, Any]:
    """The given parts by role. Raises UserError unless they are those that `rule` takes."""
    named = experts if isinstance(experts, Mapping) else {"expert": experts} if experts is not None else {}
    given = {"base": base, "antiexpert": antiexpert, **{f"expert:{name}": part for name, part in named.items()}}
    parts = {role: part for role, part in given.items() if part is not None}
    needed = make_arm(rule, [role for role in parts if role.startswith("expert:")]).roles
    for role in given:
        if (role in parts) != (role in needed):
            takes = "the base alone takes" if rule is None else f"{type(rule).__name__} takes"
            what = "has no effect" if role in parts else "is missing"
            raise UserError(f"{role} {what}: {takes} {', '.join(needed)}")
    return parts


def make_arm(rule: Rule | None, experts: Sequence[str]) -> Arm:
    """`rule` over `experts`. Raises UserError for what is not a rule, and for a rule that these do not suit."""
    try:
        arm = Arm("fused", rule=rule, experts=tuple(experts))
        if rule is not None:
            try_out(rule, len(experts))
    except ValueError as error:
        raise UserError(f"rule: {error}") from error
    return arm


def expert_roles(roles: Iterable[str], rule: Rule | None) -> list[str]:
    """The experts among `roles`; none for a rule that takes none."""
    takes = rule is not None and "experts" in getattr(rule, "inputs", INPUTS)
    return [role for role in roles if takes and role.startswith("expert:")]


def generation_config(ensemble: Ensemble, roles: Sequence[str]) -> GenerationConfig:
    """The base's, completed from the tokenizer; an answer ends where it ends for any member (`Ensemble.ends`)."""
    config = deepcopy(ensemble["base"].model.generation_config)
    for name in ("bos_token_id", "pad_token_id"):
        if getattr(config, name) is None:
            setattr(config, name, getattr(ensemble.tokenizer, name))
    config.eos_token_id = list(ensemble.ends(roles)) or None
    config.cache_implementation = None  # some models ask for a cache of their own kind; the members get theirs anyway
    return config


def _in_memory(role: str, part: Any) -> bool:
    """Whether `part` is a model or a member, not a source. UserError for a module that can be none of them."""
    fused = isinstance(part, PreTrainedModel) and isinstance(part.config, FusedConfig)
    if fused or (isinstance(part, Module) and not isinstance(part, PreTrainedModel | PeftModel)):
        raise UserError(
            f"{role}: a {type(part).__name__} can't be a member: give a transformers model, a PeftModel, a Member, a "
            "Source or a path"
        )
    return isinstance(part, Member | PreTrainedModel | PeftModel)


def _member(role: str, part: Any, tokenizer: PreTrainedTokenizerBase) -> Member:
    """`part`, a model or a member, as the member of `role`."""
    if isinstance(part, Member):
        return replace(part, role=role)
    check_head(part, vocabulary_size(tokenizer), (), role)
    return Member(role, part.eval(), vocabulary_size(tokenizer))


def _check_apart(members: Mapping[str, Member]) -> None:
    """UserError where PEFT has put an adapter into a module that is given as another role's plain model as well."""
    first: dict[int, Member] = {}
    for role, member in members.items():
        other = first.setdefault(id(member.module), member)
        if other.model is not member.model:
            raise UserError(
                f"{other.role} and {role} are one module, into which PEFT has put its adapter: load the plain model a "
                f"second time, or give both as Member(role, peft_model, vocab_size, adapter=NAME or ADAPTERS_OFF)"
            )
