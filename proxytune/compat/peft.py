"""peft: switching the adapters of one shared module fast enough to do it for every token, and its names of tensors.

PEFT's own switches walk the whole model, touch the gradient flag of every adapter weight and, in `disable_adapter`,
collect a status report: on a model of 30 layers they take longer than reading a token. Here the adapter layers are
looked up once, only their two state attributes change, and the state that was found is put back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from proxytune.compat import Name

NAMES = (
    Name("peft.tuners.tuners_utils", "BaseTunerLayer", "a layer with adapters"),
    Name("peft.tuners.tuners_utils:BaseTunerLayer", "_active_adapter", "the adapters that it adds"),
    Name("peft.tuners.tuners_utils:BaseTunerLayer", "_disable_adapters", "whether it adds none"),
    Name("peft.tuners.tuners_utils:BaseTunerLayer", "merged_adapters", "adapters that are part of the weights"),
    Name("peft.tuners.tuners_utils:BaseTunerLayer", "base_layer", "a part of the names of weights under adapters"),
    Name("peft.tuners.tuners_utils:BaseTunerLayer", "_get_available_adapters", "a layer may lack some adapters"),
    Name("peft.utils.other", "AuxiliaryTrainingWrapper", "a layer that an adapter replaces (modules_to_save)"),
    Name("peft.utils.other:AuxiliaryTrainingWrapper", "_active_adapter", "the copy that it uses"),
    Name("peft.utils.other:AuxiliaryTrainingWrapper", "_disable_adapters", "whether it uses the original"),
    Name("peft.utils.other:AuxiliaryTrainingWrapper", "original_module", "a part of the names of replaced weights"),
    Name("peft.utils.other:AuxiliaryTrainingWrapper", "_get_available_adapters", "the same"),
    Name("peft.utils.other:TrainableTokensWrapper", "token_adapter", "a part of the names of weights under it"),
)
_ADAPTER_LAYERS = (BaseTunerLayer, AuxiliaryTrainingWrapper)
_WRAPPED = ("base_layer", "original_module", "token_adapter")
"""Where layers with adapters keep what they are put around."""

_AdapterLayer = tuple[nn.Module, frozenset[str]]
_layers: WeakKeyDictionary[PeftModel, tuple[tuple[str, ...], list[_AdapterLayer]]] = WeakKeyDictionary()
"""The adapter layers of each model, each with the adapters in it, and the adapters the model had at that time."""


@contextmanager
def switched(model: PeftModel, adapter: str | None) -> Iterator[None]:
    """`model` with `adapter` alone, or without any if None, for the time of the context."""
    layers = _adapter_layers(model)
    found: list[tuple[Any, Any]] = [(layer._active_adapter, layer._disable_adapters) for layer, _ in layers]
    for layer, adapters in layers:
        active = [adapter] if adapter in adapters else []
        layer.__dict__.update(_active_adapter=active, _disable_adapters=adapter is None)
    try:
        yield
    finally:
        for (layer, _), (active, disabled) in zip(layers, found, strict=True):
            layer.__dict__.update(_active_adapter=active, _disable_adapters=disabled)


def _adapter_layers(model: PeftModel) -> Sequence[_AdapterLayer]:
    names = tuple(model.peft_config)
    if model not in _layers or _layers[model][0] != names:
        layers = [module for module in model.modules() if isinstance(module, _ADAPTER_LAYERS)]
        _layers[model] = names, [(layer, frozenset(layer._get_available_adapters())) for layer in layers]
    return _layers[model][1]


def has_adapters(model: nn.Module) -> bool:
    """Whether PEFT has put adapters into the module."""
    return any(isinstance(module, _ADAPTER_LAYERS) for module in model.modules())


def active_adapters(model: PeftModel) -> list[str]:
    """The adapters that some layer of the module adds as it is."""
    layers = (layer for layer, _ in _adapter_layers(model) if not layer._disable_adapters)
    names = (name for layer in layers for name in _listed(layer._active_adapter))
    return list(dict.fromkeys(names))


def _listed(names: Any) -> Sequence[str]:
    return [names] if isinstance(names, str) else names


def has_merged_adapters(model: PeftModel) -> bool:
    """Whether some adapter has been added to the weights, so that it cannot be switched off by `switched`."""
    return any(isinstance(module, BaseTunerLayer) and module.merged_adapters for module in model.modules())


def weights_without_adapters(model: PeftModel) -> dict[str, Tensor]:
    """The weights of the module under its adapters, by the names that they have without PEFT."""
    plain = model.get_base_model()
    layers = {path for path, module in plain.named_modules() if isinstance(module, _ADAPTER_LAYERS)}
    return {_own_name(name): weight for name, weight in plain.state_dict().items() if not _added(name, layers)}


def _added(name: str, layers: Collection[str]) -> bool:
    """Whether the weight is what one of `layers` has besides the part that it wraps."""
    parts = name.split(".")
    return any(".".join(parts[:i]) in layers and parts[i] not in _WRAPPED for i in range(1, len(parts)))


def _own_name(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPED)
