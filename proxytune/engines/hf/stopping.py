"""When an answer ends, and what its text is, as in lm-evaluation-harness's HFLM with a batch of one."""

from __future__ import annotations

from collections.abc import Sequence

from proxytune.engines.requests import GenerateRequest
from proxytune.models.ensemble import Ensemble


class StopConditions:
    """What ends the answers to one request, besides an end-of-sequence token."""

    def __init__(self, ensemble: Ensemble, request: GenerateRequest) -> None:
        self.tokenizer = ensemble.tokenizer
        self.until = request.until
        self.max_new_tokens = request.max_new_tokens
        # A token has at least one byte, and the first token of a text may lose its leading space.
        self.window = max((len(stop.encode()) for stop in self.until), default=0) + 1

    @property
    def at_once(self) -> bool:
        """Whether the answer may have no tokens at all."""
        return self.max_new_tokens == 0

    def reached(self, tokens: Sequence[int]) -> str | None:
        """Why the answer ends here: "stop" (its last token completes a stop string) or "length"; None if it goes on."""
        if self.until:
            tail = self._decode(tokens[-self.window :])
            if any(stop in tail for stop in self.until):
                return "stop"
        return "length" if len(tokens) == self.max_new_tokens else None

    def text(self, tokens: Sequence[int]) -> str:
        """`tokens` decoded without special tokens, up to the first stop string."""
        text = self._decode(tokens, skip_special_tokens=True)
        return text[: min((at for at in map(text.find, self.until) if at >= 0), default=None)]

    def _decode(self, tokens: Sequence[int], skip_special_tokens: bool = False) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens))
