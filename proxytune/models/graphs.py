"""A member's step, recorded as CUDA graphs: one for each number of slots and new tokens.

Shapes: S slots, t new tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor], Tensor]
"""From tokens [S, t] and the lengths of the slots [S] to logits [S, t, V]. Running it twice is the same as once."""
WARM_UP = 2
"""Runs before a recording: libraries allocate their workspaces in the first runs."""


@dataclass
class Recorded:
    """A graph and the tensors it reads and writes."""

    graph: torch.cuda.CUDAGraph
    tokens: Tensor
    lengths: Tensor
    logits: Tensor


class Graphs:
    """Records `step` for each new shape of its arguments, and replays it afterwards."""

    def __init__(self, step: Step, stream: torch.cuda.Stream) -> None:
        """Recordings are made on `stream`."""
        self.step = step
        self.stream = stream
        self.recorded: dict[tuple[int, ...], Recorded] = {}
        self.pool = torch.cuda.graph_pool_handle()
        """Memory shared by all recordings, which never run at the same time."""

    def __call__(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Logits [S, t, V] in a tensor that the next call overwrites."""
        shape = tuple(tokens.shape)
        if shape not in self.recorded:
            self.recorded[shape] = self._record(tokens, lengths)
        one = self.recorded[shape]
        one.tokens.copy_(tokens)
        one.lengths.copy_(lengths)
        one.graph.replay()
        return one.logits

    def clear(self) -> None:
        """Forget all recordings, because the step now uses other tensors."""
        self.recorded.clear()
        self.pool = torch.cuda.graph_pool_handle()

    def _record(self, tokens: Tensor, lengths: Tensor) -> Recorded:
        tokens, lengths = tokens.clone(), lengths.clone()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for _ in range(WARM_UP):
                self.step(tokens, lengths)
            self.stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                logits = self.step(tokens, lengths)
        torch.cuda.current_stream().wait_stream(self.stream)
        return Recorded(graph, tokens, lengths, logits)
