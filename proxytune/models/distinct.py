"""Which members must run: a model that has several roles and reads the same prompts in them runs once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping

from torch import Tensor

from proxytune.models.ensemble import Ensemble


class DistinctMembers:
    """Chooses the roles that run: the first of those with the same module, adapter state and prompts."""

    def __init__(self, ensemble: Ensemble, roles: Iterable[str], prompts_of: Callable[[str], Hashable]) -> None:
        """`prompts_of(role)` must be equal for roles that read the same prompts."""
        self.ensemble = ensemble
        first: dict[Hashable, str] = {}
        self.of: dict[str, str] = {}
        """The role that runs for each role."""
        for role in dict.fromkeys(roles):
            member = ensemble[role]
            key = (member.model, member.adapter, member.missing, member.unknown, prompts_of(role))
            self.of[role] = first.setdefault(key, role)
        self.roles = tuple(dict.fromkeys(self.of.values()))
        """The roles that run."""

    def needed(self, roles: Iterable[str]) -> list[str]:
        """The roles that run for `roles`."""
        return list(dict.fromkeys(self.of[role] for role in roles))

    def by_role(self, roles: Iterable[str], logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """For each of `roles` the `logits` of the role that runs for it."""
        return {role: logits[self.of[role]] for role in roles}
