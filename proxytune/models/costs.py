"""The cost of a model's step, from a table. It decides which drafts pay.

Nothing is timed while answers are computed, so the same run makes the same decisions and writes the same bytes. Only
ratios matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from proxytune.models.member import Member


class Machine(NamedTuple):
    """Seconds of a step over n tokens are layers * per_layer + weights * (one if n = 1, else many + n * each)."""

    per_layer: float
    one: float
    many: float
    each: float


MACHINES = {
    # One thread in float32 (AMD EPYC): up to 8 tokens cost about as much as 2, and 1.5 times as much as one.
    "cpu": Machine(0.35e-3, 0.43e-9, 0.6e-9, 0.025e-9),
    # CUDA graphs in 16 bits (docs/performance.md): 13B 10.5 ms per token, 1.1B 2.9 ms, 13B for 8 rows 11.8 ms.
    "cuda": Machine(0.11e-3, 0.46e-12, 0.46e-12, 1.5e-14),
}


@dataclass(frozen=True)
class StepCost:
    """The cost of one member's steps."""

    layers: int
    weights: int
    """The number of weights read at each step: all except an embedding that is not also the head."""
    machine: Machine

    def of(self, tokens: float) -> float:
        """Approximate seconds of a step that reads `tokens` tokens, over all rows."""
        if tokens != 1:
            return self.many + tokens * self.each
        return self.layers * self.machine.per_layer + self.weights * self.machine.one

    @property
    def many(self) -> float:
        """The constant part of the seconds of a step over several tokens."""
        return self.layers * self.machine.per_layer + self.weights * self.machine.many

    @property
    def each(self) -> float:
        """Additional seconds for each of these tokens."""
        return self.weights * self.machine.each


def step_cost(member: Member) -> StepCost:
    """The member's cost on its type of device; types that are not in the table count as a GPU."""
    model, layers = cast(Any, member.model), member.config.get_text_config().num_hidden_layers
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    unread = 0 if head is None or embedding.weight is head.weight else embedding.weight.numel()
    weights = sum(parameter.numel() for parameter in model.parameters()) - unread
    return StepCost(layers, weights, MACHINES.get(member.device.type, MACHINES["cuda"]))
