"""Judge models that run here and say yes or no."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from proxytune.errors import UserError
from proxytune.models.family import Source
from proxytune.models.loading.checks import check_sources
from proxytune.models.loading.modules import load_module
from proxytune.models.loading.tokenizers import load_tokenizers
from proxytune.models.vocabulary import token_ids


def probabilities(key: str, path: str, prompts: Sequence[str]) -> list[float]:
    """The probability of " yes" after each prompt, against that of " no".

    Raises UserError, beginning with `key`, for a model that is not there, and where yes and no begin with one token.
    """
    source = Source(path)
    check_sources({key: source})
    tokenizer = load_tokenizers({key: source})[key]
    model = load_module(key, source).eval()
    found = []
    for prompt in prompts:
        tokens = token_ids(tokenizer, prompt)
        yes, no = (_first(tokenizer, prompt, tokens, word) for word in (" yes", " no"))
        if yes == no:
            raise UserError(f"{key}: the tokenizer of {path!r} begins yes and no with the same token")
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([tokens], device=model.device)).logits[0, -1].float()
        found.append(torch.sigmoid(logits[yes] - logits[no]).item())
    return found


def _first(tokenizer: PreTrainedTokenizerBase, prompt: str, tokens: Sequence[int], word: str) -> int:
    """The first token of `word` after the prompt."""
    longer = token_ids(tokenizer, prompt + word)
    same = next((i for i, (a, b) in enumerate(zip(tokens, longer, strict=False)) if a != b), len(tokens))
    return longer[same]
