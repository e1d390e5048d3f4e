"""Drafts of what comes next, for members to verify in one pass: what any decoding needs of them.

A drafter never changes an answer. It decides only how many tokens one pass of the large model confirms.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

LONGEST, SHORTEST = 4, 2
"""Tokens in a row that must be found again for what followed them to be a draft: the longer, the better."""
CONFIDENT = 0.5
"""The probability below which a model's next token is no draft."""
SHORT = 4
"""Answers of at most so many tokens are not drafted."""


def look_up(tokens: Sequence[int], texts: Iterable[Sequence[int]], most: int) -> tuple[int, ...]:
    """At most `most` tokens that followed the last few of `tokens` in one of `texts`; none if these stand nowhere.

    Of equally long matches that in the earlier text counts, and there the last one.
    """
    packed = [(text, _packed(text[:-1])) for text in texts]  # something must follow
    for length in range(min(LONGEST, len(tokens)), SHORTEST - 1, -1):
        tail = _packed(tokens[-length:])
        for text, content in packed:
            at = _last(content, tail)
            if at >= 0:
                return tuple(text[at + length : at + length + most])
    return ()


def follow(tokens: Sequence[int], answers: Sequence[Sequence[int]], most: int) -> tuple[int, ...]:
    """At most `most` tokens that other answers to the same prompt have after `tokens`.

    An answer that begins with `tokens` comes first, then any that has their last few.
    """
    known = tuple(tokens)
    for answer in answers:
        if len(answer) > len(known) and tuple(answer[: len(known)]) == known:
            return tuple(answer[len(known) : len(known) + most])
    return look_up(tokens, answers, most)


def _packed(tokens: Sequence[int]) -> bytes:
    return array("I", tokens).tobytes()


def _last(content: bytes, tail: bytes) -> int:
    """The last place of one packed sequence in another, in tokens; -1 if there is none."""
    size = array("I").itemsize
    at = content.rfind(tail)
    while at % size and at > 0:  # found across the borders of tokens
        at = content.rfind(tail, 0, at + len(tail) - 1)
    return at // size if at >= 0 else -1


class Acceptance:
    """How often a drafter's next token is there and right. It begins with a guess that a few tokens outweigh."""

    def __init__(self, right: float = 2.8, tried: float = 4.0) -> None:
        self._right = right
        self._tried = tried

    def note(self, accepted: int, rejected: bool) -> None:
        """`accepted` tokens were right; `rejected`: the next one was wrong, or was not drafted for want of any."""
        self._right += accepted
        self._tried += accepted + rejected

    @property
    def rate(self) -> float:
        return self._right / self._tried

    def tokens(self, most: int) -> float:
        """Tokens expected of one pass that verifies a draft of `most`: 1 + rate + rate² + …"""
        return sum(self.rate**k for k in range(most + 1))
