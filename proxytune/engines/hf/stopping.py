"""The end and the text of an answer, as in lm-evaluation-harness's HFLM, but decoded in the context of the prompt."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from proxytune.engines.requests import GenerateRequest
from proxytune.models.vocabulary import text_after


class StopConditions:
    """What ends the answers to one request, besides an end-of-sequence token."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, request: GenerateRequest, prompt: tuple[int, ...]) -> None:
        """`prompt` is what the arm's base reads; the text of an answer is what it adds to the prompt's text."""
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.until = request.until
        self.max_new_tokens = request.max_new_tokens
        # A token has at least one byte.
        self.window = max((len(stop.encode()) for stop in self.until), default=0)

    def reached(self, tokens: Sequence[int]) -> str | None:
        """Why the answer ends: "stop" (its last token completes a stop string) or "length"; None if it continues."""
        if self.until:
            earlier, last = tokens[: -self.window], tokens[-self.window :]
            tail = text_after(self.tokenizer, (*self.prompt, *earlier), last)
            if any(stop in tail for stop in self.until):
                return "stop"
        return "length" if len(tokens) == self.max_new_tokens else None

    def text(self, tokens: Sequence[int]) -> str:
        """`tokens` decoded in the context of the prompt, without special tokens, up to the first stop string."""
        text = text_after(self.tokenizer, self.prompt, tokens, skip_special_tokens=True)
        return text[: min((at for at in map(text.find, self.until) if at >= 0), default=None)]
