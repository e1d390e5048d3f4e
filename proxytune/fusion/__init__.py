"""Fusion rules: pure tensor maths, importing torch only."""

from proxytune.fusion.rule import Fused, Rule

__all__ = ["Fused", "Rule"]
