"""ROUGE for every script: rouge-score with a tokenizer of our own."""

from __future__ import annotations

import re
import unicodedata
from functools import cache, lru_cache

from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer, Tokenizer

ROUGES = ["rouge1", "rouge2", "rougeL"]
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


class _Words(Tokenizer):
    """rouge-score's own tokenizer, which keeps a-z and 0-9 and no other letter, made to read every script.

    A word is a run of letters, digits and their combining marks, in Unicode's composed form (NFC) and without case; in
    scripts that put no blanks between words (Han, kana, Thai, Lao, Burmese, Khmer) every character is one. Words of
    ASCII alone are stemmed as usual, so a text without other letters has the words that rouge-score finds in it.
    """

    def __init__(self) -> None:
        self._ascii = DefaultTokenizer(use_stemmer=True)

    def tokenize(self, text: str) -> list[str]:
        return list(self._words(text))

    @lru_cache(2**14)  # noqa: B019 (one object for the whole process)
    def _words(self, text: str) -> tuple[str, ...]:
        """Kept, as the references and many outputs are the same for all arms."""
        words = _UNSPACED.sub(r" \g<0> ", _letters(text)).split()
        several = ([found] if not found.isascii() else self._ascii.tokenize(found) for found in words)
        return tuple(word for some in several for word in some)


def _letters(text: str) -> str:
    """`text` with a blank for all that is no letter, digit or mark."""
    composed = unicodedata.normalize("NFC", text).casefold()
    return "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in composed)


@cache
def scorer() -> RougeScorer:
    """The one of this process."""
    return RougeScorer(ROUGES, tokenizer=_Words())
