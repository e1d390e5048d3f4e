"""A tokenizer with one token per word, so that a context and its continuation always split at the space."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

EOS = "<s>"
"""Starts every prompt and document and ends every answer."""
PAD = "<pad>"


def make_tokenizer(texts: Iterable[str], window: int) -> PreTrainedTokenizerFast:
    """Knows every whitespace-separated word of `texts`; puts `<s>` before what it encodes."""
    words = sorted({word for text in texts for word in text.split()})
    vocabulary = {word: i for i, word in enumerate([PAD, EOS, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{EOS} $A", special_tokens=[(EOS, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=EOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        model_max_length=window,
        clean_up_tokenization_spaces=False,
    )
