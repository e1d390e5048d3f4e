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
"""The maximum number of tokens in a draft if as many are drafted as pay."""
PAYS = 1.05
"""The minimum expected speed-up, in tokens per second, for a drafter to be used."""
DRAFTERS = ("sibling", "expert", "ngram")


@dataclass(frozen=True)
class DraftPlan:
    """Drafts of at most `most` tokens are expected to give `gain` times as many tokens per second as no drafts."""

    most: int
    gain: float
    role: str | None = None
    """The expert that drafts."""


class Plans:
    """How often each drafter has been right so far, and which drafts pay by that and the table of costs."""

    def __init__(self, members: DistinctMembers, most: int | None) -> None:
        """`most` is the maximum number of tokens in every draft (0: no drafts); None: as many as pay, up to `MOST`."""
        self.members = members
        self.most = most
        self.acceptance = {name: Acceptance() for name in DRAFTERS}
        self.guessed = Acceptance()
        """How often the expert would have drafted the tokens that it was given as a guess."""
        self.costs = {role: step_cost(members.ensemble[role]) for role in members.roles} if most != 0 else {}

    def note(self, branch: Branch, accepted: Sequence[int]) -> None:
        """Records the number of tokens of the branch's draft that each of its arms accepted."""
        if branch.drafter is None or (branch.drafter == "expert" and len(branch.row) == 1):
            return  # an expert on its own is always right about itself
        short = branch.drafter == "expert" and len(branch.draft) < branch.most and not branch.ended
        for count in accepted:
            self.acceptance[branch.drafter].note(len(branch.draft), count, short)

    def guess(self, role: str, rows: int) -> int:
        """How many guessed tokens the expert `role` should read at once with each of the `rows` that it drafts for."""
        tokens, best, pays = 0.0, 0.0, 0
        for most in range(MOST + 1):
            tokens += self.guessed.right**most
            if (gain := tokens / self.costs[role].of(rows * (1 + most))) > best:
                best, pays = gain, most
        return pays

    def make(self, branches: Sequence[Branch], role: str | None) -> dict[str, DraftPlan]:
        """The drafters that may draft for `branches`, the best first; `role` is the expert that would draft."""
        if self.most == 0 or not branches:
            return {}
        rows = Counter(role for branch in branches for role in branch.row)
        plans = {name: self._best(name, rows, len(branches), role) for name in DRAFTERS if role or name != "expert"}
        chosen = {name: plan for name, plan in plans.items() if self.most is not None or plan.gain > PAYS}
        return dict(sorted(chosen.items(), key=lambda item: -item[1].gain))

    def _best(self, name: str, rows: Mapping[str, int], branches: int, role: str | None) -> DraftPlan:
        """The length with the largest expected gain in tokens per second over no drafts."""
        expert = role if name == "expert" else None
        drafting = branches if expert is None else rows[expert]
        share = drafting / branches
        plain = sum(self.costs[role].of(n) for role, n in rows.items())
        # The expert reads a draft token by token; the other members read it in one pass.
        others = [(self.costs[role], n) for role, n in rows.items() if role != expert]
        passes = sum(cost.many for cost, _ in others)
        each = sum(n * cost.each for cost, n in others) + (self.costs[expert].of(rows[expert]) if expert else 0.0)
        found = []
        for most, (tokens, width) in enumerate(self.acceptance[name].expected(self.most or MOST, drafting), start=1):
            drafted = passes + (width + 1) * each
            found.append(DraftPlan(most, (share * tokens + 1 - share) * plain / drafted, expert))
        return max(found, key=lambda plan: plan.gain) if self.most is None else found[-1]
