"""Fusion rules: pure tensor maths, importing torch only. A rule is one file here and one YAML in `conf/fusion`."""

from proxytune.fusion.match_kl import MatchKL
from proxytune.fusion.rule import Fused, Rule
from proxytune.fusion.static import Static

RULES: dict[str, type[Rule]] = {rule.id: rule for rule in (Static, MatchKL)}
"""Every rule by its id."""

__all__ = ["RULES", "Fused", "MatchKL", "Rule", "Static"]
