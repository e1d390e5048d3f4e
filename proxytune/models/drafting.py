"""Drafts of what comes next, for members to verify in one pass: what any decoding needs of them.

A drafter never changes an answer. It decides only how many tokens one pass of the large model confirms.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence

LONGEST, SHORTEST = 4, 2
"""Tokens in a row that must be found again for what followed them to be a draft: the longer, the better."""
CONFIDENT = 0.3
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


class Grams:
    """What followed the last few tokens in the texts so far; of several places the one that was added last counts."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], tuple[tuple[int, ...], int]] = {}
        """By the tokens: a text, and where in it they end."""

    def add(self, text: tuple[int, ...]) -> None:
        for end in range(SHORTEST, len(text)):
            for length in range(SHORTEST, min(LONGEST, end) + 1):
                self._after[text[end - length : end]] = text, end

    def after(self, tokens: tuple[int, ...], most: int) -> tuple[int, ...]:
        """At most `most` tokens that followed the last few of `tokens`, by as many of these as are known."""
        for length in range(min(LONGEST, len(tokens)), SHORTEST - 1, -1):
            if (found := self._after.get(tokens[-length:])) is not None:
                text, end = found
                return text[end : end + most]
        return ()


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
    """How often a drafter has a next token, and how often that is right: first guesses, soon outweighed by counts."""

    def __init__(self) -> None:
        self._found, self._sought = 3.4, 4.0
        self._right, self._read = 3.4, 4.0

    def note(self, drafted: int, accepted: int, short: bool) -> None:
        """The first `accepted` of `drafted` tokens were right; `short`: there was no further one to draft."""
        self._found += drafted
        self._sought += drafted + short
        self._right += accepted
        self._read += min(accepted + 1, drafted)

    @property
    def found(self) -> float:
        """The share of places at which there was a token to draft."""
        return self._found / self._sought

    @property
    def right(self) -> float:
        """The share of drafted tokens that were right, of those after which none was wrong."""
        return self._right / self._read

    def expected(self, most: int, rows: int) -> Iterator[tuple[float, float]]:
        """For drafts of up to 1, 2, … `most` tokens: the tokens expected of one pass that verifies them, its own among
        them, and those expected of the longest draft among so many rows."""
        tokens, width = 1.0, 0.0
        for k in range(1, most + 1):
            tokens += (self.found * self.right) ** k
            width += 1 - (1 - self.found**k) ** rows
            yield tokens, width
