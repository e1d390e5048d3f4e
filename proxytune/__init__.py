"""Fuse the logits of small tuned models into a large untuned one, and measure what that gives.

from proxytune import FusedCausalLM, Static
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proxytune.fusion.match_kl import MatchKL
    from proxytune.fusion.static import Static
    from proxytune.models.hf.causal_lm import FusedCausalLM
    from proxytune.models.hf.config import FusedConfig

__version__ = "0.1.0"
__all__ = ["FusedCausalLM", "FusedConfig", "MatchKL", "Static"]

_HOMES = {
    "FusedCausalLM": "models.hf.causal_lm",
    "FusedConfig": "models.hf.config",
    "MatchKL": "fusion.match_kl",
    "Static": "fusion.static",
}


def __getattr__(name: str) -> Any:
    """Loads each name when it is first used, so that `import proxytune` stays light."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
