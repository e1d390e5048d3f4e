"""The adapters of one shared module: putting them on it, and switching them per role, fast enough for every token.

PEFT's own switches walk the whole model, touch the gradient flag of every adapter weight and, in `disable_adapter`,
collect a status report: on a model of 30 layers they take longer than reading a token. Here the adapter layers are
looked up once, only their two state attributes change, and the state that was found is put back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from peft import PeftConfig, PeftModel, PeftModelForCausalLM
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel

from proxytune.errors import UserError
from proxytune.models.family import Source
from proxytune.models.loading.files import first_line, source_errors

Module = PreTrainedModel | PeftModel
ADAPTERS_OFF = "<off>"
"""The adapter state of a member that uses a shared PEFT module without any of its adapters."""

_layers: WeakKeyDictionary[PeftModel, tuple[tuple[str, ...], list[nn.Module]]] = WeakKeyDictionary()
"""The adapter layers of each model, with the adapters it had when they were looked up."""


def load_adapter(model: Module, role: str, source: Source, name: str) -> PeftModel:
    """Puts the adapter of `source` on `model` under `name`; UserError where it does not fit to the last tensor."""
    adapter = str(source.adapter)
    misfit = f"{role}: adapter {adapter!r} does not fit {source.path!r}: "
    with source_errors(role, source):
        config = PeftConfig.from_pretrained(adapter, revision=source.adapter_revision)
    if config.is_prompt_learning or config.is_adaption_prompt:
        kind = config.peft_type.value
        raise UserError(f"{role}: adapter {source.adapter!r} is of type {kind}; only weight adapters can be switched")
    config.inference_mode = True
    try:
        if not isinstance(model, PeftModel):
            model = PeftModelForCausalLM(model, config, adapter_name=name)
        result = model.load_adapter(adapter, adapter_name=name, revision=source.adapter_revision)
    except (ValueError, RuntimeError, KeyError) as error:
        raise UserError(misfit + first_line(error)) from error
    if lost := sorted({*result.missing_keys, *result.unexpected_keys}):
        raise UserError(misfit + f"{len(lost)} tensors have no counterpart, first {lost[0]!r}")
    return model.eval().requires_grad_(False)


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
