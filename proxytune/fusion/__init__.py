"""Fusion rules: pure tensor maths that imports only torch. A rule is one file here and one YAML in `conf/fusion`."""

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from proxytune.fusion.match_kl import MatchKL
from proxytune.fusion.rule import Fused, Rule
from proxytune.fusion.static import Static


def _rules() -> dict[str, type[Rule]]:
    """Every class with `id` and `fuse` in the files of this folder, keyed by its id."""
    rules: dict[str, type[Rule]] = {}
    for name in sorted(module.name for module in iter_modules(__path__) if not module.ispkg):
        module = import_module(f"{__name__}.{name}")
        kinds: list[Any] = [kind for kind in vars(module).values() if isinstance(kind, type)]
        rules |= {kind.id: kind for kind in kinds if kind.__module__ == module.__name__ and hasattr(kind, "id")}
    return rules


RULES = _rules()
"""Every rule, keyed by its id."""

__all__ = ["RULES", "Fused", "MatchKL", "Rule", "Static"]
