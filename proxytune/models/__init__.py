"""The members of a family, their sources, and the single step that runs them. Modules load when first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proxytune.models.ensemble import Ensemble, Inputs
    from proxytune.models.facts import MemberFacts, Members
    from proxytune.models.family import FamilySpec, Source
    from proxytune.models.hf.causal_lm import FusedCausalLM
    from proxytune.models.hf.config import FusedConfig
    from proxytune.models.loading.checks import check
    from proxytune.models.loading.describe import describe, readers
    from proxytune.models.loading.files import identity
    from proxytune.models.loading.load import load
    from proxytune.models.member import ADAPTERS_OFF, KVState, Member

_HOMES = {
    "ADAPTERS_OFF": "member",
    "Ensemble": "ensemble",
    "FamilySpec": "family",
    "FusedCausalLM": "hf.causal_lm",
    "FusedConfig": "hf.config",
    "Inputs": "ensemble",
    "KVState": "member",
    "Member": "member",
    "MemberFacts": "facts",
    "Members": "facts",
    "Source": "family",
    "check": "loading.checks",
    "describe": "loading.describe",
    "identity": "loading.files",
    "load": "loading.load",
    "readers": "loading.describe",
}

__all__ = [
    "ADAPTERS_OFF",
    "Ensemble",
    "FamilySpec",
    "FusedCausalLM",
    "FusedConfig",
    "Inputs",
    "KVState",
    "Member",
    "MemberFacts",
    "Members",
    "Source",
    "check",
    "describe",
    "identity",
    "load",
    "readers",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
