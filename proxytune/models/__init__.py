"""Members of a family, what they come from, and the one step that runs them. Modules load when first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proxytune.models.checking import check
    from proxytune.models.ensemble import Ensemble, Inputs
    from proxytune.models.files import identity
    from proxytune.models.fused import FusedCausalLM
    from proxytune.models.fused_config import FusedConfig
    from proxytune.models.loading import load
    from proxytune.models.member import ADAPTERS_OFF, Member, Reading
    from proxytune.models.sources import FamilySpec, Source

_HOMES = {
    "ADAPTERS_OFF": "member",
    "Ensemble": "ensemble",
    "FamilySpec": "sources",
    "FusedCausalLM": "fused",
    "FusedConfig": "fused_config",
    "Inputs": "ensemble",
    "Member": "member",
    "Reading": "member",
    "Source": "sources",
    "check": "checking",
    "identity": "files",
    "load": "loading",
}

__all__ = [
    "ADAPTERS_OFF",
    "Ensemble",
    "FamilySpec",
    "FusedCausalLM",
    "FusedConfig",
    "Inputs",
    "Member",
    "Reading",
    "Source",
    "check",
    "identity",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
