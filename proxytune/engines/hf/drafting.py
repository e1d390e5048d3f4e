"""Speculation: drafts that all members of a branch verify in one pass. It changes no answer.

    sibling   another arm's answer to the same request, from this call or given with the request
    expert    the expert decodes on its own while it is confident; its passes are needed for the fused logits anyway.
              If earlier answers to other requests had the same last tokens, it reads what followed there in one
              pass and keeps as much as it would have drafted
    ngram     what followed the same tokens earlier in the prompt or the answer

Shapes: B rows of one member, t positions read, V vocabulary.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import islice

import torch
from torch import Tensor

from proxytune.engines.hf.branch import Branch
from proxytune.engines.hf.kv import KVStates
from proxytune.engines.hf.plans import DraftPlan, Plans
from proxytune.engines.hf.sampling import Noise, choose_with_confidence
from proxytune.engines.requests import GenerateRequest
from proxytune.fusion.arm import Arm
from proxytune.models.distinct import DistinctMembers
from proxytune.models.drafting import CONFIDENT, LONGEST, SHORT, Grams, follow, look_up

Answers = Mapping[int, Sequence[tuple[int, ...]]]
"""The tokens of finished answers, by request index."""


class Drafting:
    """Drafts for branches, and makes the members read branches together with their drafts."""

    def __init__(
        self, members: DistinctMembers, states: KVStates, ends: Mapping[str, set[int]], most: int | None
    ) -> None:
        """`ends` are the end tokens by arm; `most` is the maximum length of a draft (0: none; None: as many as pay)."""
        self.members = members
        self.states = states
        self.ends = ends
        self.plans = Plans(members, most)
        self.past = Grams()
        """Of the answers so far."""

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

    def learn(self, request: GenerateRequest, tokens: tuple[int, ...]) -> None:
        """Learns from an answer, whose tokens other answers may share."""
        if self.plans.most != 0 and not self.states.recorded:
            self.past.add((*request.prompt.tokens[-LONGEST:], *tokens))

    def note(self, branch: Branch, accepted: Sequence[int]) -> None:
        """Records the number of tokens of the branch's draft that each of its arms accepted."""
        self.plans.note(branch, accepted)

    def _prepare(
        self, branches: Sequence[Branch], leading: Mapping[Branch, str]
    ) -> tuple[str | None, Mapping[str, DraftPlan]]:
        """The expert that drafts, if any, and the maximum draft length of each drafter, the best drafter first."""
        able = [branch for branch in branches if branch.pending.request.max_new_tokens > SHORT]
        experts = Counter(leading[branch] for branch in able if branch in leading)
        role = experts.most_common(1)[0][0] if experts else None
        plans = self.plans.make(branches, role)
        return (role if "expert" in plans else None), plans

    def _look_up(self, branch: Branch, plans: Mapping[str, DraftPlan], texts: Sequence[tuple[int, ...]]) -> None:
        """Gives the branch the draft of the best drafter that has one, or leaves drafting to the expert."""
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
        """Extends the draft, up to the first token that ends every arm's answer."""
        for token in tokens:
            branch.draft += (token,)
            after = branch.tokens + branch.draft
            if all(self._ends(branch, arm, after) for arm in branch.arms):
                branch.ended = True
                return

    def _ends(self, branch: Branch, arm: Arm, tokens: tuple[int, ...]) -> bool:
        return tokens[-1] in self.ends[arm.name] or branch.stops[arm.base].reached(tokens) is not None

    def _draft_on(self, role: str, branches: Sequence[Branch], noise: Noise) -> Tensor:
        """The role reads its rows and drafts while it is confident where it is to draft: logits [B, t, V].

        Together with the last token it reads a guess of what follows, and keeps the part that it would have drafted.
        """
        reading: list[Sequence[int]] = [branch.reading for branch in branches]
        drafting = [row for row, branch in enumerate(branches) if branch.drafter == "expert"]
        parts, columns = list[Tensor](), [list[int]() for _ in branches]
        # A CUDA graph is recorded for each number of tokens, so there a guess would cost more than it saves.
        first, most = 0, 0 if self.states.recorded else self.plans.guess(role, len(branches))
        while True:
            guesses = {row: self._guess(branches[row], most) for row in drafting}
            read = [(*tokens, *guesses.get(row, ())) for row, tokens in enumerate(reading)]
            parts.append(self.states.read({role: read})[role])
            grown = self._grow(branches, guesses, parts[-1], noise)
            drafting = [row for row, (_, goes_on) in grown.items() if goes_on]
            used = [grown[row][0] if row in grown else len(tokens) for row, tokens in enumerate(reading)]
            self.states.forget(role, [len(tokens) - n for tokens, n in zip(read, used, strict=True)])
            for row, n in enumerate(used):
                columns[row] += range(first, first + n)
            if not drafting:
                return _in_order(parts, columns)
            first += parts[-1].shape[1]
            reading = [branch.draft[-1:] if row in drafting else () for row, branch in enumerate(branches)]

    def _guess(self, branch: Branch, most: int) -> tuple[int, ...]:
        """What followed the last tokens in earlier answers: at most `most` tokens, and no more than may be drafted."""
        end = (*branch.pending.request.prompt.tokens[-LONGEST:], *branch.tokens[-LONGEST:], *branch.draft[-LONGEST:])
        return self.past.after(end, min(most, branch.most - len(branch.draft)))

    def _grow(
        self,
        branches: Sequence[Branch],
        guesses: Mapping[int, tuple[int, ...]],
        logits: Tensor,
        noise: Noise,
    ) -> dict[int, tuple[int, bool]]:
        """Extends the drafts of the rows with `guesses` from `logits` [B, t, V]; returns `_extend`'s results by row."""
        if not guesses:
            return {}
        places = [(row, n) for row, guess in guesses.items() for n in range(1 + len(guess))]
        index, whole = [row * logits.shape[1] + n for row, n in places], logits.flatten(0, 1)
        steps = [(branches[row].pending.request, _length(branches[row]) + n) for row, n in places]
        some = whole if index == list(range(len(whole))) else whole[index]
        tokens, sure = choose_with_confidence(some.float(), steps, noise)
        chosen = iter(zip(tokens.tolist(), sure.tolist(), strict=True))
        grown = {}
        for row, guess in guesses.items():
            grown[row] = self._extend(branches[row], guess, list(islice(chosen, 1 + len(guess))))
            self.plans.guessed.note(len(guess), grown[row][0] - 1, False)
        return grown

    def _extend(self, branch: Branch, guess: Sequence[int], chosen: Sequence[tuple[int, float]]) -> tuple[int, bool]:
        """Extends the draft by the expert's choices while they match the guess, and by one token more.

        `chosen` has its token and confidence at each place. Returns the number of places used, and whether the expert
        continues to draft.
        """
        for n, (token, confident) in enumerate(chosen, start=1):
            # Written so that a NaN confidence ends the draft.
            if not confident >= CONFIDENT or len(branch.draft) >= branch.most:
                return n, False
            self._append(branch, (token,))
            if branch.ended:
                return n, False
            if n > len(guess) or token != guess[n - 1]:
                return n, True
        raise AssertionError("after the last token of a guess there is a place")


def _texts(branches: Sequence[Branch], answers: Answers) -> Mapping[int, list[tuple[int, ...]]]:
    """By request index: drafts given with the request, and the finished and unfinished answers of its arms."""
    texts: dict[int, list[tuple[int, ...]]] = defaultdict(list)
    for branch in branches:
        index = branch.pending.index
        if index not in texts:
            texts[index] += [*branch.pending.request.drafts, *answers.get(index, ())]
        texts[index].append(branch.tokens)
    return texts


def _length(branch: Branch) -> int:
    """The number of tokens in the branch and its draft."""
    return len(branch.tokens) + len(branch.draft)


def _in_order(parts: Sequence[Tensor], columns: Sequence[Sequence[int]]) -> Tensor:
    """Concatenates the logits of several passes, [B, t, V] each, and picks the `columns` of each row, in order."""
    logits = torch.cat(list(parts), dim=1) if len(parts) > 1 else parts[0]
    width = max(map(len, columns))
    padded = [[*some, *[0] * (width - len(some))] for some in columns]
    if all(some == list(range(logits.shape[1])) for some in padded):
        return logits
    return logits.take_along_dim(torch.tensor(padded, device=logits.device)[..., None], dim=1)
