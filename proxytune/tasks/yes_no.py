"""Causal language models as judges: they say yes or no."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from proxytune.errors import UserError
from proxytune.models.family import Source
from proxytune.models.loading.checks import check_sources
from proxytune.models.loading.modules import load_module
from proxytune.models.loading.tokenizers import load_tokenizers
from proxytune.models.vocabulary import token_ids


@dataclass(frozen=True)
class YesNo:
    """A causal language model, by name or folder, that answers yes or no. It loads when it is first used."""

    key: str
    """the configuration's key, for errors"""
    path: str

    def __post_init__(self) -> None:
        """Raises UserError for a model that is not there."""
        check_sources({self.key: Source(self.path)})

    def probabilities(self, prompts: Sequence[str]) -> list[float]:
        """The probability of " yes" after each prompt, against that of " no".

        Raises UserError where yes and no begin with the same token.
        """
        return [self._probability(prompt) for prompt in prompts]

    def _probability(self, prompt: str) -> float:
        tokens = token_ids(self._tokenizer, prompt)
        yes, no = (self._first(prompt, tokens, word) for word in (" yes", " no"))
        if yes == no:
            raise UserError(f"{self.key}: the tokenizer of {self.path!r} begins yes and no with the same token")
        with torch.inference_mode():
            logits = self._model(input_ids=torch.tensor([tokens], device=self._model.device)).logits[0, -1].float()
        return torch.sigmoid(logits[yes] - logits[no]).item()

    def _first(self, prompt: str, tokens: Sequence[int], word: str) -> int:
        """The first token of `word` after the prompt."""
        longer = token_ids(self._tokenizer, prompt + word)
        same = next((i for i, (a, b) in enumerate(zip(tokens, longer, strict=False)) if a != b), len(tokens))
        return longer[same]

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizers({self.key: Source(self.path)})[self.key]

    @cached_property
    def _model(self) -> PreTrainedModel:
        return load_module(self.key, Source(self.path)).eval()
