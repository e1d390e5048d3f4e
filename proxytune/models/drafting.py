"""Drafts of the next tokens, which members verify in one pass. This part is common to all decoders.

A drafter never changes an answer. It only decides how many tokens one pass of the large model confirms.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence

LONGEST, SHORTEST = 4, 2
"""The lengths of the last tokens to look up; what followed a match is the draft. Longer matches are better."""
CONFIDENT = 0.3
"""A model's next token is not drafted if its probability is lower than this."""
SHORT = 4
"""Answers of at most this many tokens are not drafted."""


def look_up(tokens: Sequence[int], texts: Iterable[Sequence[int]], most: int) -> tuple[int, ...]:
    """At most `most` tokens that followed the last few of `tokens` in one of `texts`; empty if there is no match.

    Among equally long matches, the first text with one is used, and in it the last match.
    """
    packed = [(text, _packed(text[:-1])) for text in texts]  # at least one token must follow
    for length in range(min(LONGEST, len(tokens)), SHORTEST - 1, -1):
        tail = _packed(tokens[-length:])
        for text, content in packed:
            at = _last(content, tail)
            if at >= 0:
                return tuple(text[at + length : at + length + most])
    return ()


def follow(tokens: Sequence[int], answers: Sequence[Sequence[int]], most: int) -> tuple[int, ...]:
    """At most `most` tokens that follow `tokens` in other answers to the same prompt.

    An answer that begins with `tokens` is preferred, then one that contains the last few of them.
    """
    known = tuple(tokens)
    for answer in answers:
        if len(answer) > len(known) and tuple(answer[: len(known)]) == known:
            return tuple(answer[len(known) : len(known) + most])
    return look_up(tokens, answers, most)


class Grams:
    """An index of what followed the last few tokens in earlier texts; the most recently added occurrence is used."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], tuple[tuple[int, ...], int]] = {}
        """From tokens to a text and the position in it where they end."""

    def add(self, text: tuple[int, ...]) -> None:
        for end in range(SHORTEST, len(text)):
            for length in range(SHORTEST, min(LONGEST, end) + 1):
                self._after[text[end - length : end]] = text, end

    def after(self, tokens: tuple[int, ...], most: int) -> tuple[int, ...]:
        """At most `most` tokens that followed the last few of `tokens`, by the longest match in the index."""
        for length in range(min(LONGEST, len(tokens)), SHORTEST - 1, -1):
            if (found := self._after.get(tokens[-length:])) is not None:
                text, end = found
                return text[end : end + most]
        return ()


def _packed(tokens: Sequence[int]) -> bytes:
    return array("I", tokens).tobytes()


def _last(content: bytes, tail: bytes) -> int:
    """The last position, in tokens, of one packed sequence in another; -1 if it does not occur."""
    size = array("I").itemsize
    at = content.rfind(tail)
    while at % size and at > 0:  # a match across token boundaries
        at = content.rfind(tail, 0, at + len(tail) - 1)
    return at // size if at >= 0 else -1


class Acceptance:
    """How often a drafter has a next token and how often it is right: initial guesses, soon outweighed by counts."""

    def __init__(self) -> None:
        self._found, self._sought = 3.4, 4.0
        self._right, self._read = 3.4, 4.0

    def note(self, drafted: int, accepted: int, short: bool) -> None:
        """Records that the first `accepted` of `drafted` tokens were right; `short`: there was no further one."""
        self._found += drafted
        self._sought += drafted + short
        self._right += accepted
        self._read += min(accepted + 1, drafted)

    @property
    def found(self) -> float:
        """The fraction of positions at which there was a token to draft."""
        return self._found / self._sought

    @property
    def right(self) -> float:
        """The fraction of drafted tokens that were right, up to and including the first wrong one of each draft."""
        return self._right / self._read

    def expected(self, most: int, rows: int) -> Iterator[tuple[float, float]]:
        """For drafts of up to 1, 2, … `most` tokens: the expected number of tokens from one pass that verifies them,
        including its own token, and the expected length of the longest draft among `rows` rows."""
        tokens, width = 1.0, 0.0
        for k in range(1, most + 1):
            tokens += (self.found * self.right) ** k
            width += 1 - (1 - self.found**k) ** rows
            yield tokens, width
