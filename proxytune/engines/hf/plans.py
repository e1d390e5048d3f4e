"""Which drafters pay, and how long their drafts should be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from proxytune.engines.hf.branch import Branch
from proxytune.models.costs import step_cost
from proxytune.models.distinct import DistinctMembers
from proxytune.models.drafting import Acceptance

MOST = 8
"""Tokens of a draft at most, where as many are drafted as pay."""
PAYS = 1.05
"""How many times as many tokens a second a draft must promise."""
DRAFTERS = ("sibling", "expert", "ngram")


@dataclass(frozen=True)
class Plan:
    """Drafts of at most `most` tokens promise `gain` times as many tokens a second as none."""

    most: int
    gain: float
    role: str | None = None
    """The expert that drafts."""


class Plans:
    """How often each drafter was right so far, and what follows from that and from the table of costs."""

    def __init__(self, members: DistinctMembers, most: int | None) -> None:
        """`most`: every draft may have so many tokens (0: none); None: as many as pay, up to `MOST`."""
        self.members = members
        self.most = most
        self.acceptance = {name: Acceptance() for name in DRAFTERS}
        self.guessed = Acceptance()
        """How often the expert would have drafted what it was given as a guess."""
        self.costs = {role: step_cost(members.ensemble[role]) for role in members.roles} if most != 0 else {}

    def note(self, branch: Branch, accepted: Sequence[int]) -> None:
        """The number of tokens of the branch's draft that each of its arms accepted."""
        if branch.drafter is None or (branch.drafter == "expert" and len(branch.row) == 1):
            return  # an expert alone is always right about itself
        short = branch.drafter == "expert" and len(branch.draft) < branch.most and not branch.ended
        for count in accepted:
            self.acceptance[branch.drafter].note(len(branch.draft), count, short)

    def guess(self, role: str, rows: int) -> int:
        """How many tokens of a guess the expert `role` should read along with each of `rows` that it drafts for."""
        tokens, best, pays = 0.0, 0.0, 0
        for most in range(MOST + 1):
            tokens += self.guessed.right**most
            if (gain := tokens / self.costs[role].of(rows * (1 + most))) > best:
                best, pays = gain, most
        return pays

    def make(self, branches: Sequence[Branch], role: str | None) -> dict[str, Plan]:
        """The drafters that may draft for `branches`, the best first; `role` is the expert that would draft."""
        if self.most == 0 or not branches:
            return {}
        rows = Counter(role for branch in branches for role in branch.row)
        plans = {name: self._best(name, rows, len(branches), role) for name in DRAFTERS if role or name != "expert"}
        chosen = {name: plan for name, plan in plans.items() if self.most is not None or plan.gain > PAYS}
        return dict(sorted(chosen.items(), key=lambda item: -item[1].gain))

    def _best(self, name: str, rows: Mapping[str, int], branches: int, role: str | None) -> Plan:
        """The length that promises most tokens a second over those without drafts."""
        expert = role if name == "expert" else None
        drafting = branches if expert is None else rows[expert]
        share = drafting / branches
        plain = sum(self.costs[role].of(n) for role, n in rows.items())
        # The expert reads a draft token by token, the others read it in one pass.
        others = [(self.costs[role], n) for role, n in rows.items() if role != expert]
        passes = sum(cost.many for cost, _ in others)
        each = sum(n * cost.each for cost, n in others) + (self.costs[expert].of(rows[expert]) if expert else 0.0)
        found = []
        for most, (tokens, width) in enumerate(self.acceptance[name].expected(self.most or MOST, drafting), start=1):
            drafted = passes + (width + 1) * each
            found.append(Plan(most, (share * tokens + 1 - share) * plain / drafted, expert))
        return max(found, key=lambda plan: plan.gain) if self.most is None else found[-1]
