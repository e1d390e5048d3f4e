"""From whatever the user has (models, members, sources) to an Ensemble."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from proxytune.console import loading_bars
from proxytune.errors import UserError
from proxytune.fusion.rule import Rule, try_out
from proxytune.models.ensemble import Ensemble
from proxytune.models.family import Source
from proxytune.models.loading.checks import check_sources
from proxytune.models.loading.load import load_members
from proxytune.models.loading.tokenizers import load_tokenizers
from proxytune.models.loading.trial import check_reading
from proxytune.models.member import Member
from proxytune.models.vocabulary import MissingTokens, check_head, check_policy, vocabulary_size


@loading_bars()
def gather(
    base: Any,
    experts: Any,
    antiexpert: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    policy: MissingTokens = "refuse",
) -> Ensemble:
    """The ensemble of what `FusedCausalLM.compose` was given; sources are checked and loaded, equal ones once."""
    check_policy(policy)
    parts = _by_role(base, experts, antiexpert)
    sources = {
        r: Source.of(part, r) for r, part in parts.items() if not isinstance(part, Member | PreTrainedModel | PeftModel)
    }
    check_sources(sources)
    tokenizers = load_tokenizers(sources)
    tokenizer = tokenizer or tokenizers.get("base") or getattr(parts["base"], "tokenizer", None)
    if tokenizer is None:
        raise UserError("models in memory do not say what their token ids mean: pass tokenizer=, the base's.")
    loaded = load_members(sources, tokenizers, tokenizer, policy)
    given = {role: _member(role, part, tokenizer) for role, part in parts.items() if role not in loaded}
    _check_apart(given)
    check_reading(given.values())
    return Ensemble({role: loaded.get(role) or given[role] for role in parts}, tokenizer)


def check_rule(rule: object, experts: int) -> None:
    """Raises UserError for what is no rule, and for one that can't be used with this number of experts."""
    if isinstance(rule, type) or not hasattr(rule, "fuse"):
        raise UserError(f"rule={rule!r} is no rule: give an object with fuse(), as MatchKL() or Static(1.0).")
    try:
        try_out(cast(Rule, rule), experts)
    except ValueError as error:
        raise UserError(f"rule: {error}") from error


def _by_role(base: Any, experts: Any, antiexpert: Any) -> dict[str, Any]:
    if (experts is None) != (antiexpert is None):
        raise UserError(
            "experts and antiexpert belong together: the antiexpert is the model the experts were tuned from."
        )
    parts = {"base": base}
    if experts is not None:
        named = experts if isinstance(experts, Mapping) else {"expert": experts}
        if not named:
            raise UserError("experts is empty: give at least one, or leave experts and antiexpert out.")
        parts |= {"antiexpert": antiexpert, **{f"expert:{name}": part for name, part in named.items()}}
    return parts


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
        module = member.model.get_base_model() if isinstance(member.model, PeftModel) else member.model
        other = first.setdefault(id(module), member)
        if other.model is not member.model:
            raise UserError(
                f"{other.role} and {role} are one module, into which PEFT has put its adapter: load the plain model a "
                f"second time, or give both as Member(role, peft_model, vocab_size, adapter=NAME or ADAPTERS_OFF)"
            )
