"""Compiles one layer of a model with torch.compile and uses it for all layers. This takes seconds; compiling a large
model as a whole takes a minute. Python then calls the layers one by one, an overhead that CUDA graphs remove."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin


def blocks_of(model: nn.Module, layers: int) -> nn.ModuleList | None:
    """The module list that holds the `layers` layers of a model; None if there is none of that length."""
    return next((m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == layers), None)


def by_layer(model: nn.Module, blocks: nn.ModuleList) -> Callable[..., Any]:
    """A function that runs the model with each of its layers, `blocks`, compiled."""
    plain = list(blocks)
    faster = [CompiledLayer(layer, number) for number, layer in enumerate(plain)]

    def run(**arguments: Any) -> Any:
        """Leaves the model unchanged: prompts, whose lengths vary, are read without compiling."""
        _put(faster, blocks)
        try:
            return model(**arguments)
        finally:
            _put(plain, blocks)

    return run


def _put(layers: Sequence[nn.Module], blocks: nn.ModuleList) -> None:
    for number, layer in enumerate(layers):
        blocks[number] = layer


class CompiledLayer(nn.Module):
    """A layer that does not see its index, so that code compiled for one layer works for all."""

    def __init__(self, layer: nn.Module, number: int) -> None:
        super().__init__()
        self.layer = torch.compile(layer)
        self.number = number

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer(*map(self._own, args), **{name: self._own(value) for name, value in kwargs.items()})

    def _own(self, value: Any) -> Any:
        """The layer's part of the cache if `value` is the cache, else `value`."""
        return OneLayer(cast(CacheLayerMixin, value.layers[self.number])) if isinstance(value, Cache) else value

    def __getattr__(self, name: str) -> Any:
        """Attributes that the model reads from its layers (such as their type of attention)."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)


class OneLayer(Cache):
    """A cache of a single layer, which is updated for any layer index."""

    def __init__(self, layer: CacheLayerMixin) -> None:
        super().__init__(layers=[layer])
        self.only = layer

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return self.only.update(key_states, value_states, *args, **kwargs)
