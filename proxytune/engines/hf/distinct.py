"""Which members must run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from proxytune.engines.requests import Prompt
from proxytune.fusion.arm import Arm
from proxytune.models.ensemble import Ensemble


class Voices:
    """The distinct members that `arms` need for `prompts`: roles that answer alike and read alike run once."""

    def __init__(self, ensemble: Ensemble, arms: Sequence[Arm], prompts: Iterable[Prompt]) -> None:
        self.ensemble = ensemble
        self.arms = tuple(arms)
        self.of: dict[str, str] = {}
        """The voice of each role: the first role with the same member and the same prompts."""
        different = {id(prompt): prompt for prompt in prompts}.values()
        for role in dict.fromkeys(role for arm in arms for role in arm.roles):
            self.of[role] = next((v for v in self.of.values() if self._alike(v, role, different)), role)
        self.names = tuple(dict.fromkeys(self.of.values()))

    def _alike(self, one: str, other: str, prompts: Iterable[Prompt]) -> bool:
        same_member = self.ensemble.canonical(one) == self.ensemble.canonical(other)
        return same_member and all(prompt.of(one) == prompt.of(other) for prompt in prompts)

    def needed(self, arms: Iterable[Arm]) -> list[str]:
        return list(dict.fromkeys(self.of[role] for arm in arms for role in arm.roles))

    def by_role(self, arm: Arm, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`logits` by voice -> the same by the roles of `arm`."""
        return {role: logits[self.of[role]] for role in arm.roles}

    def unique(self, prompts: Iterable[Prompt]) -> tuple[list[Prompt], list[int]]:
        """The prompts that differ for some voice, and the place among them of each given prompt."""
        places: dict[tuple[tuple[int, ...], ...], int] = {}
        different: list[Prompt] = []
        at = []
        for prompt in prompts:
            place = places.setdefault(tuple(prompt.of(voice) for voice in self.names), len(different))
            if place == len(different):
                different.append(prompt)
            at.append(place)
        return different, at
