"""One arm's answer to a request as it grows, ended by the default engine's own rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from proxytune.engines.hf.stopping import StopConditions
from proxytune.engines.requests import Generated, GenerateRequest
from proxytune.fusion.arm import Arm
from proxytune.models.facts import Members

KeptWeights = Mapping[int, Sequence[float] | None]
"""By position of a token the weights [T] of the logits after it; None where the logits are not finite."""


class GrowingAnswer:
    """vLLM gets the stop strings so that it can stop early. It reads text by other rules than ours, so it
    may stop a little later (what is too much is cut off) or too early (the answer is continued)."""

    def __init__(self, members: Members, request: GenerateRequest, arm: Arm) -> None:
        self.request = request
        self.arm = arm
        self.ends = members.ends(arm.roles)
        self.stop = StopConditions(members.tokenizer, request, request.prompt.tokens)
        self.tokens: tuple[int, ...] = ()
        self.weights: list[Sequence[float] | None] = []
        self.finish = None if request.max_new_tokens else "length"

    def asked(self) -> tuple[tuple[int, ...], dict[str, Any], dict[str, Any]]:
        """The prompt, vLLM's sampling settings for the rest of the answer, and how the model is to draw tokens."""
        until = self.request.until
        text = {"stop": list(until), "skip_special_tokens": False} if until else {"detokenize": False}
        ends = {"stop_token_ids": list(self.ends), "ignore_eos": True}
        left = {"max_tokens": self.request.max_new_tokens - len(self.tokens)}
        return self.request.prompt.tokens + self.tokens, ends | left | text, self._drawn()

    def _drawn(self) -> dict[str, Any]:
        """What it takes to draw tokens by the default engine's noise; greedy decoding is vLLM's own."""
        request = self.request
        if request.temperature == 0 and not request.banned:
            return {}
        names = ("temperature", "top_p", "seed", "banned")
        return {"sampling": {name: getattr(request, name) for name in names}, "start": len(request.prompt.tokens)}

    def read(self, tokens: Sequence[int], kept: KeptWeights) -> None:
        """Adds tokens that vLLM chose, up to the end of the answer."""
        for token in tokens:
            weights = kept[len(self.request.prompt.tokens) - 1 + len(self.tokens)]
            self.weights.append(weights)
            if weights is None:
                self.finish = "undefined"
                return
            self.tokens += (token,)
            self.finish = "eos" if token in self.ends else self.stop.reached(self.tokens)
            if self.finish is not None:
                return

    def answer(self) -> Generated:
        text = self.stop.text(self.tokens[:-1] if self.finish == "eos" else self.tokens)
        return Generated(self.tokens, text, by_expert(self.weights, self.arm), str(self.finish))


def by_expert(weights: Sequence[Sequence[float] | None], arm: Arm) -> tuple[tuple[float, ...], ...]:
    """[T][n] from n times [T]; NaN where the logits are not finite."""
    undefined = [float("nan")] * len(arm.experts)
    return tuple(tuple((step or undefined)[t] for step in weights) for t in range(len(arm.experts)))
