"""Putting adapters on a module that several members share."""

from __future__ import annotations

from peft import PeftConfig, PeftModel, PeftModelForCausalLM
from transformers import PreTrainedModel

from proxytune.errors import UserError
from proxytune.models.family import Source
from proxytune.models.loading.files import first_line, source_errors

Module = PreTrainedModel | PeftModel
ADAPTERS_OFF = "<off>"
"""The adapter state of a member that uses a shared PEFT module without any of its adapters."""


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
