"""From tokens as an endpoint writes them to ids of the family's vocabulary."""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cached_property
from typing import TYPE_CHECKING

from proxytune.errors import UserError
from proxytune.models.vocabulary import BROKEN, vocabulary_size
from proxytune.validation import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BY_ID = re.compile(r"token_id:(\d+)")
"""How vLLM names tokens with return_tokens_as_token_ids."""
_LETTER = re.compile(r"[A-Z]")


class SameTokens:
    """For an endpoint with the family's own tokenizer: every token is exactly one of the family's."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, what: str) -> None:
        self.tokenizer = tokenizer
        self.what = what
        """The endpoint, for errors."""
        self.size = vocabulary_size(tokenizer)

    def ids(self, token: str) -> tuple[int, ...]:
        """One id; none for a piece of a character, whose text says nothing.

        Raises UserError for a token that the family does not have, and for a text that several tokens have.
        """
        by_id = _BY_ID.fullmatch(token)
        found = {int(by_id[1])} & set(range(self.size)) if by_id else self._by_text.get(token, set())
        if len(found) == 1:
            return tuple(found)
        if BROKEN in token:
            return ()
        if not found:
            raise UserError(
                f"{self.what} gives the token {shown(token)}, which {self.tokenizer.name_or_path!r} "
                "(models.base.tokenizer) does not have: name the endpoint's own tokenizer"
            )
        raise UserError(
            f"{self.what} gives the token {shown(token)}, which may be any of {len(found)} tokens of "
            f"{self.tokenizer.name_or_path!r}: have tokens named by ids "
            "(vLLM: models.base.options.return_tokens_as_token_ids=true), or leave models.base.tokenizer out"
        )

    @cached_property
    def _by_text(self) -> dict[str, set[int]]:
        """The tokens that a text may be, decoded alone or after another token (some tokenizers drop a first blank)."""
        found = defaultdict(set)
        tokenizer, numbers = self.tokenizer, range(self.size)
        alone = _texts(tokenizer, [[i] for i in numbers])
        first = next(i for i in numbers if alone[i].isalpha())
        after = _texts(tokenizer, [[first, i] for i in numbers])
        for i, (text, longer) in enumerate(zip(alone, after, strict=True)):
            found[text].add(i)
            found[longer.removeprefix(alone[first])].add(i)
        return dict(found)


class Letters:
    """For an endpoint with another tokenizer: single capital letters alone, with or without blanks around them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def ids(self, token: str) -> tuple[int, ...]:
        """All tokens of the family that are this letter; none for what is no single letter."""
        letter = token.strip()
        return self._by_letter.get(letter, ()) if _LETTER.fullmatch(letter) else ()

    @cached_property
    def _by_letter(self) -> dict[str, tuple[int, ...]]:
        found: dict[str, list[int]] = defaultdict(list)
        numbers = range(vocabulary_size(self.tokenizer))
        for i, text in enumerate(_texts(self.tokenizer, [[i] for i in numbers])):
            if _LETTER.fullmatch(text.strip()):
                found[text.strip()].append(i)
        return {letter: tuple(ids) for letter, ids in found.items()}


def _texts(tokenizer: PreTrainedTokenizerBase, sequences: list[list[int]]) -> list[str]:
    """Each sequence decoded, special tokens included."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:  # many times faster than one by one
        return list(backend.decode_batch(sequences, skip_special_tokens=False))
    return list(tokenizer.batch_decode(sequences, clean_up_tokenization_spaces=False))
