"""Switching the adapters of one shared PEFT module, fast enough to do it for every token.

PEFT's own switches walk the whole model, touch the gradient flag of every adapter weight and, in `disable_adapter`,
collect a status report: on a model of 30 layers they take longer than reading a token. Here the adapter layers are
looked up once, only their two state attributes change, and the state that was found is put back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

_layers: WeakKeyDictionary[PeftModel, tuple[tuple[str, ...], list[nn.Module]]] = WeakKeyDictionary()
"""The adapter layers of each model, with the adapters it had when they were looked up."""


@contextmanager
def switched(model: PeftModel, adapter: str | None) -> Iterator[None]:
    """`model` with `adapter` alone, or without any if None, for the time of the context."""
    layers = _adapter_layers(model)
    found = [(layer.__dict__["_active_adapter"], layer.__dict__["_disable_adapters"]) for layer in layers]
    for layer in layers:
        layer.__dict__.update(_active_adapter=[] if adapter is None else [adapter], _disable_adapters=adapter is None)
    try:
        yield
    finally:
        for layer, (active, disabled) in zip(layers, found, strict=True):
            layer.__dict__.update(_active_adapter=active, _disable_adapters=disabled)


def _adapter_layers(model: PeftModel) -> list[nn.Module]:
    names = tuple(model.peft_config)
    if model not in _layers or _layers[model][0] != names:
        kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
        _layers[model] = names, [module for module in model.modules() if isinstance(module, kinds)]
    return _layers[model][1]
