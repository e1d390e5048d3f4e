"""The tokenizers of sources."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from proxytune.models.family import Source
from proxytune.models.loading.files import read_source
from proxytune.models.loading.plain import has_plain_tokenizer


def load_tokenizers(sources: Mapping[str, Source]) -> dict[str, PreTrainedTokenizerBase]:
    """Tokenizers by role; each is read once."""
    loaded: dict[tuple[str | None, ...], PreTrainedTokenizerBase] = {}
    tokenizers = {}
    for role, source in sources.items():
        key = (source.module.path, source.revision, source.gguf_file)
        if key not in loaded:
            loaded[key] = read_source(_kind(source), role, source)
            if source.gguf_file is not None:
                loaded[key] = _without_invented_tokens(loaded[key])
        tokenizers[role] = loaded[key]
    return tokenizers


def _kind(source: Source) -> Any:
    """The class that reads the tokenizer: for most, transformers' own choice."""
    if has_plain_tokenizer(source):
        return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer


def _without_invented_tokens(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A GGUF file lists every token; transformers adds default special tokens beyond the list, which no head knows."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    listed = [token for token in state["added_tokens"] if token["id"] < tokenizer.vocab_size]
    if len(listed) == len(state["added_tokens"]):
        return tokenizer
    real = {token for token, i in tokenizer.get_vocab().items() if i < tokenizer.vocab_size}
    special = {name: token for name, token in tokenizer.special_tokens_map.items() if token in real}
    plain = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state | {"added_tokens": listed})),
        name_or_path=tokenizer.name_or_path,
        clean_up_tokenization_spaces=False,
        **special,
    )
    plain.chat_template = tokenizer.chat_template
    return plain
