"""Arms: the named ways to answer that an experiment compares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from proxytune.fusion.rule import Fused, Rule, fuse, inputs_of


@dataclass(frozen=True)
class Arm:
    """A single model (`rule` is None and `base` is its role), or a rule and the roles that it takes.

    Roles are the keys of an `Ensemble`: "base", "antiexpert", "expert:<name>", "tuned:<name>".
    """

    name: str
    base: str = "base"
    rule: Rule | None = None
    experts: tuple[str, ...] = ()
    antiexpert: str = "antiexpert"
    inputs: tuple[str, ...] = field(init=False, repr=False, compare=False)
    """What the rule takes: "base", optionally "experts" and "antiexpert"."""
    roles: tuple[str, ...] = field(init=False, repr=False, compare=False)
    """The members that must run for this arm."""

    def __post_init__(self) -> None:
        """Raises ValueError if `rule` is not a rule, if its experts are missing, and if experts are given that nothing
        takes."""
        inputs = ("base",) if self.rule is None else inputs_of(self.rule)
        if ("experts" in inputs) != bool(self.experts):
            what = "one model alone takes none" if self.rule is None else f"its rule takes {', '.join(inputs)}"
            raise ValueError(f"arm {self.name!r} has {len(self.experts)} experts, but {what}")
        roles = {"base": (self.base,), "experts": self.experts, "antiexpert": (self.antiexpert,)}
        object.__setattr__(self, "inputs", inputs)
        object.__setattr__(self, "roles", tuple(role for name in inputs for role in roles[name]))

    @property
    def kind(self) -> str:
        """ "fused" for an arm with a rule, else the role of its model without the name ("expert", "tuned", ...)."""
        return "fused" if self.rule is not None else self.base.partition(":")[0]

    def answer(self, logits: Mapping[str, Tensor]) -> Fused:
        """Fused logits [..., V] and weights [T, ...] (T = 0 without experts) from `logits[role]`, each [..., V]."""
        if self.rule is None:
            base = logits[self.base]
            return Fused(base.float(), base.new_empty((0, *base.shape[:-1]), dtype=torch.float32))
        return fuse(self.rule, **{name: self._input(name, logits) for name in self.inputs})

    def _input(self, name: str, logits: Mapping[str, Tensor]) -> Tensor:
        if name != "experts":
            return logits[self.base if name == "base" else self.antiexpert]
        first, *others = (logits[role] for role in self.experts)
        # Stacking copies; most arms have one expert.
        return torch.stack([first, *others]) if others else first.unsqueeze(0)
