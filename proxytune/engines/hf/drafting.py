"""Speculation: drafts that all members of a branch verify in one pass. Answers are those without it.

    sibling   another arm's answer to the same request: of this call, or one that the request brings
    expert    the expert reads on by itself while it is confident; its passes are needed for the fused logits anyway
    ngram     what followed the same tokens earlier in the prompt or the answer

Shapes: B rows of one member, t positions read, V vocabulary.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from proxytune.engines.hf.branch import Branch
from proxytune.engines.hf.kv import KVStates
from proxytune.engines.hf.plans import Plan, Plans
from proxytune.engines.hf.sampling import Noise, choose_with_confidence
from proxytune.fusion.arm import Arm
from proxytune.models.distinct import DistinctMembers
from proxytune.models.drafting import CONFIDENT, SHORT, follow, look_up

Answers = Mapping[int, Sequence[tuple[int, ...]]]
"""The tokens of finished answers by request index."""


class Drafting:
    """Drafts for branches, and has the members read branches with their drafts."""

    def __init__(
        self, members: DistinctMembers, states: KVStates, ends: Mapping[str, set[int]], most: int | None
    ) -> None:
        """`ends` are the end tokens by arm; `most`: tokens of a draft at most (0: none), None: as many as pay."""
        self.members = members
        self.states = states
        self.ends = ends
        self.plans = Plans(members, most)

    def read(
        self, branches: Sequence[Branch], answers: Answers, leading: Mapping[Branch, str], noise: Noise
    ) -> dict[str, Tensor]:
        """Every member reads the last token of the branches that need it, and their drafts: logits [B, t, V] by role.

        `leading` is the expert with the largest weight after each branch that has any.
        """
        role, plans = self._prepare(branches, leading)
        others = _texts(branches, answers)
        for branch in branches:
            self._look_up(branch, plans, others[branch.pending.index])
        rows = {role: [branch for branch in branches if role in branch.row] for role in self.states.states}
        logits = {}
        if role is not None:
            logits[role] = self._draft_on(role, rows.pop(role), noise)
        reading = {role: [branch.reading for branch in some] for role, some in rows.items()}
        return logits | (self.states.read(reading) if reading else {})

    def note(self, branch: Branch, accepted: Sequence[int]) -> None:
        """The number of tokens of the branch's draft that each of its arms accepted."""
        self.plans.note(branch, accepted)

    def _prepare(
        self, branches: Sequence[Branch], leading: Mapping[Branch, str]
    ) -> tuple[str | None, Mapping[str, Plan]]:
        """The expert that drafts, if any, and how far each drafter may go, the best first."""
        able = [branch for branch in branches if branch.pending.request.max_new_tokens > SHORT]
        experts = Counter(leading[branch] for branch in able if branch in leading)
        role = experts.most_common(1)[0][0] if experts else None
        plans = self.plans.make(branches, role)
        return (role if "expert" in plans else None), plans

    def _look_up(self, branch: Branch, plans: Mapping[str, Plan], texts: Sequence[tuple[int, ...]]) -> None:
        """Gives the branch the draft of the best drafter that finds one, or leaves it to the expert."""
        request = branch.pending.request
        room = request.max_new_tokens - len(branch.tokens) - 1
        if request.max_new_tokens <= SHORT or room < 1:
            return
        for name, plan in plans.items():
            branch.drafter, branch.most = name, min(plan.most, room)
            if name == "expert" and plan.role in branch.row:
                return
            if name == "sibling":
                found = follow(branch.tokens, [text for text in texts if text != branch.tokens], branch.most)
            elif name == "ngram":
                text = (*request.prompt.tokens, *branch.tokens)
                found = look_up(text, [text], branch.most)
            else:
                found = ()
            if found:
                self._append(branch, found)
                return
        branch.drafter = None

    def _append(self, branch: Branch, tokens: Sequence[int]) -> None:
        """Adds to the draft, up to the first token that ends every arm's answer."""
        for token in tokens:
            branch.draft += (token,)
            after = branch.tokens + branch.draft
            if all(self._ends(branch, arm, after) for arm in branch.arms):
                branch.ended = True
                return

    def _ends(self, branch: Branch, arm: Arm, tokens: tuple[int, ...]) -> bool:
        return tokens[-1] in self.ends[arm.name] or branch.stops[arm.base].reached(tokens) is not None

    def _draft_on(self, role: str, branches: Sequence[Branch], noise: Noise) -> Tensor:
        """The role reads its rows, and on in those that it drafts for, token by token while it is confident."""
        reading: list[Sequence[int]] = [branch.reading for branch in branches]
        drafting = [row for row, branch in enumerate(branches) if branch.drafter == "expert"]
        parts = [self.states.read({role: reading})[role]]
        first = parts[0].shape[1]
        while drafting:
            reading = [()] * len(branches)
            last = parts[-1][:, 0 if len(parts) == 1 else -1]
            last = last if len(drafting) == len(branches) else last[drafting]
            drafting = list(self._next(branches, drafting, last.float(), noise))
            for row in drafting:
                reading[row] = branches[row].draft[-1:]
            if drafting:
                parts.append(self.states.read({role: reading})[role])
        logits = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        return logits if first == 1 or len(parts) == 1 else _in_order(logits, branches, first)

    def _next(self, branches: Sequence[Branch], rows: Sequence[int], logits: Tensor, noise: Noise) -> Iterator[int]:
        """Adds the token that follows by `logits` [n, V] to the draft of `rows` [n]; those rows that are to be read."""
        some = [branches[row] for row in rows]
        steps = [(branch.pending.request, len(branch.tokens) + len(branch.draft)) for branch in some]
        tokens, sure = choose_with_confidence(logits, steps, noise)
        for row, branch, token, confident in zip(rows, some, tokens.tolist(), sure.tolist(), strict=True):
            # A comparison with NaN is false.
            if confident >= CONFIDENT and len(branch.draft) < branch.most:
                self._append(branch, (token,))
                if not branch.ended:
                    yield row


def _texts(branches: Sequence[Branch], answers: Answers) -> Mapping[int, list[tuple[int, ...]]]:
    """By request index, what other arms have answered or begun to answer, and what the request brings."""
    texts: dict[int, list[tuple[int, ...]]] = defaultdict(list)
    for branch in branches:
        index = branch.pending.index
        if index not in texts:
            texts[index] += [*branch.pending.request.drafts, *answers.get(index, ())]
        texts[index].append(branch.tokens)
    return texts


def _in_order(logits: Tensor, branches: Sequence[Branch], first: int) -> Tensor:
    """`logits` [B, t, V] with those of the expert's rows, which begin in column 0 and go on in column `first`, moved
    to the columns of their places."""
    width = logits.shape[1]
    own = [0, *range(first, width), *range(1, first)]
    columns = [own if branch.drafter == "expert" else list(range(width)) for branch in branches]
    return logits.take_along_dim(torch.tensor(columns, device=logits.device)[..., None], dim=1)
