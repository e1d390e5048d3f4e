"""One vocabulary for a family: token ids must mean the same to every member.

The family's vocabulary is the base tokenizer's: V = its largest id + 1. Heads are often padded beyond it (such as to
a multiple of 64), and the padding rows of two checkpoints differ, so logits are cut to V before any use.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, get_args

from proxytune.errors import UserError, unknown_name

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from proxytune.models.facts import MemberFacts

MissingTokens = Literal["refuse", "base_only"]
"""What to do if the base and another member know different tokens (an id with two meanings is always refused).

refuse: an error that names the tokens.
base_only: the base decides. A token that only the base knows gets no shift from the pair that lacks it (its logit is
-inf there) and is read by that member as its unknown token; a token that only the other member knows is never produced.
"""

CONTEXT = 8
"""The initial number of context tokens when decoding text after other text; more if they start inside a character."""
BROKEN = "\ufffd"
"""What tokenizers write for bytes that do not form a character."""


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """V: the largest id that `tokenizer` knows, plus one. This is not the number of rows of a model's head."""
    return max(tokenizer.get_vocab().values()) + 1


def token_numbers(tokenizer: PreTrainedTokenizerBase, tokens: Iterable[str]) -> tuple[int, ...]:
    """The ids of tokens given as text, ascending; raises UserError for a token that `tokenizer` does not have."""
    vocabulary = tokenizer.get_vocab()
    for token in tokens:
        if token not in vocabulary:
            raise UserError(
                f"models.end_tokens: {token!r} is not a token of the family's tokenizer; null: each member's own"
            )
    return tuple(sorted(vocabulary[token] for token in tokens))


def check_policy(policy: str) -> None:
    if policy not in get_args(MissingTokens):
        raise unknown_name("missing_tokens policy", policy, get_args(MissingTokens))


def missing_tokens(
    base: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, role: str, policy: MissingTokens = "refuse"
) -> tuple[int, ...]:
    """The ids that `base` knows and `other` (of `role`) lacks; raises UserError if `policy` does not allow them."""
    ours, theirs = _by_id(base), _by_id(other)
    if ours == theirs:
        return ()
    clashes = [i for i in sorted(ours.keys() & theirs.keys()) if ours[i] != theirs[i]]
    if clashes:
        shown = ", ".join(f"{i} is {ours[i]!r} in base and {theirs[i]!r} in {role}" for i in clashes[:3])
        raise UserError(
            f"base and {role} have different tokenizers: {len(clashes)} ids differ ({shown}). "
            "The models of a family must share one vocabulary: choose models with the base's tokenizer"
        )
    if policy == "refuse":
        raise UserError(_refusal(ours, theirs, role))
    return tuple(sorted(ours.keys() - theirs.keys()))


def unknown_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that a member reads in place of one it does not know: its unknown, else its end-of-sequence token."""
    candidates = (tokenizer.unk_token_id, tokenizer.eos_token_id)
    found = next((token for token in candidates if token is not None), None)
    if found is None:
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no unknown and no end-of-sequence token: "
            "missing_tokens=base_only needs one of them to read tokens that only the base knows"
        )
    return found


def check_head(
    model: PreTrainedModel | PeftModel | MemberFacts, vocab_size: int, missing: tuple[int, ...], role: str
) -> None:
    """Raises UserError if the model's head has no row for a token that its tokenizer knows."""
    rows = model.config.get_text_config().vocab_size
    lacking = set(range(rows, vocab_size)) - set(missing)
    if lacking:
        raise UserError(
            f"{role}: the model's head has {rows} rows, but its tokenizer knows tokens up to id {max(lacking)}. "
            "Use the tokenizer the model was trained with, or resize the model's embeddings"
        )


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens that a model reads for `text`: the special tokens that `tokenizer` puts before a text, then its own.

    A text that already begins with a beginning-of-sequence token (such as a rendered chat) gets no second one. No
    end-of-sequence token is added, although many tokenizers do so after fine-tuning.
    Raises UserError for a word that the tokenizer has no token for.
    """
    with known_words(tokenizer, text):
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    before = tokens_before(tokenizer)
    begun = bool(before) and text.lstrip().startswith(str(tokenizer.convert_ids_to_tokens(before[0])))
    return tokens if begun else [*before, *tokens]


def tokens_before(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that `tokenizer` puts before every text."""
    if not tokenizer("")["input_ids"]:
        return []
    special = set(tokenizer.all_special_ids)
    words = (str(tokenizer.decode([i])) for i in range(tokenizer.vocab_size) if i not in special)
    word, alone = next((w, ids) for w in words if (ids := tokenizer(w, add_special_tokens=False)["input_ids"]))
    whole = tokenizer(word)["input_ids"]
    return whole[: next(i for i in range(len(whole)) if whole[i : i + len(alone)] == alone)]


def text_after(
    tokenizer: PreTrainedTokenizerBase, before: Sequence[int], tokens: Sequence[int], skip_special_tokens: bool = False
) -> str:
    """The text that `tokens` add to `before`: both decoded together, minus the text of `before`.

    Decoded separately, tokens would lose the blank that SentencePiece-like tokenizers drop at the start of a text. A
    character whose first bytes are in `before` counts as added. Only the end of `before` is decoded.
    """
    width = CONTEXT
    while True:
        context = list(before[-width:])
        start = str(tokenizer.decode(context, skip_special_tokens=skip_special_tokens))
        whole = str(tokenizer.decode([*context, *tokens], skip_special_tokens=skip_special_tokens))
        if width >= len(before) or (start and BROKEN not in (start[:1], whole[:1])):
            alike = (a == b for a, b in zip(start, whole, strict=False))
            return whole[sum(takewhile(bool, alike)) :]
        width *= 2


def tokenizer_state(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Everything that determines how `tokenizer` encodes and decodes, as plain data."""
    facts = {
        "class": type(tokenizer).__qualname__,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "clean_up": getattr(tokenizer, "clean_up_tokenization_spaces", None),
    }
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = json.loads(backend.to_str())  # without what each call sets
        return facts | {name: part for name, part in state.items() if name not in ("padding", "truncation")}
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = {file.name: file.read_bytes().hex() for file in sorted(Path(folder).iterdir()) if file.is_file()}
    return facts | files


@contextmanager
def known_words(tokenizer: PreTrainedTokenizerBase, text: str) -> Iterator[None]:
    """Wraps the tokenising of `text`: raises UserError if `tokenizer` has no token for a word, nor an unknown token.

    Tokenizers with subwords read any text; tokenizers with one token per word, as in the miniature, do not.
    """
    try:
        yield
    except Exception as error:
        if type(error) is not Exception:  # the tokenizers library raises nothing more specific
            raise
        word = next((word for word in text.split() if not _reads(tokenizer, word)), text[:40])
        raise UserError(
            f"the tokenizer has no token for {word!r}: it knows only {len(tokenizer)} words, and a text for these "
            "models may use no others. Write it with their words, or give other models"
        ) from error


def _reads(tokenizer: PreTrainedTokenizerBase, word: str) -> bool:
    try:
        tokenizer(word)
    except Exception:
        return False
    return True


def _by_id(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    return {i: token for token, i in tokenizer.get_vocab().items()}


def _refusal(ours: dict[int, str], theirs: dict[int, str], role: str) -> str:
    parts = []
    for owner, mine, other in (("base", ours, theirs), (role, theirs, ours)):
        only = sorted(mine.keys() - other.keys())
        if only:
            shown = ", ".join(f"{i} {mine[i]!r}" for i in only[:3]) + (", ..." if len(only) > 3 else "")
            parts.append(f"only {owner} knows {len(only)} token{'s' * (len(only) > 1)} ({shown})")
    return (
        f"base and {role} know different tokens: {'; '.join(parts)}. "
        "Set missing_tokens=base_only to leave those tokens to the base, or choose models with the base's tokenizer"
    )
