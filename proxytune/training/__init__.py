"""Tuning: trl and peft for real models (`sft`), a compact loop for models that train in seconds (`loop`)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proxytune.training.recipe import Recipe, Tuning
    from proxytune.training.sft import tune

__all__ = ["Recipe", "Tuning", "tune"]

_HOMES = {"Recipe": "recipe", "Tuning": "recipe", "tune": "sft"}


def __getattr__(name: str) -> Any:
    """Loads what is asked for when it is asked for: a recipe alone needs no trl."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
