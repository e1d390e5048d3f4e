"""Arms: the named ways to answer that an experiment compares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from proxytune.fusion.rule import Fused, Rule, fuse


@dataclass(frozen=True)
class Arm:
    """One model alone (`rule` is None and `base` is its role), or a rule over base, experts and antiexpert.

    Roles are the keys of an `Ensemble`: "base", "antiexpert", "expert:<name>", "tuned:<name>".
    """

    name: str
    base: str = "base"
    rule: Rule | None = None
    experts: tuple[str, ...] = ()
    antiexpert: str = "antiexpert"

    def __post_init__(self) -> None:
        if (self.rule is None) != (not self.experts):
            raise ValueError(f"arm {self.name!r}: a rule needs experts, and a model alone has none")

    @property
    def roles(self) -> tuple[str, ...]:
        """The members that must run for this arm."""
        return (self.base,) if self.rule is None else (self.base, *self.experts, self.antiexpert)

    def answer(self, logits: Mapping[str, Tensor]) -> Fused:
        """Fused logits [..., V] and weights [T, ...] (T = 0 for a model alone) from `logits[role]`, each [..., V]."""
        base = logits[self.base]
        if self.rule is None:
            return Fused(base.float(), base.new_empty((0, *base.shape[:-1]), dtype=torch.float32))
        first, *others = (logits[role] for role in self.experts)
        # Stacking copies; most arms have one expert.
        experts = torch.stack([first, *others]) if others else first.unsqueeze(0)
        return fuse(self.rule, base, experts, logits[self.antiexpert])
