"""The adapters of one module: which may share it, and putting them on it."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import cast

import peft
import torch
from peft import PeftConfig, PeftModel, PeftModelForCausalLM, PeftType
from torch import Tensor
from transformers import PreTrainedModel

from proxytune.compat.peft import has_merged_adapters, weights_without_adapters
from proxytune.errors import UserError, first_line, unknown_name
from proxytune.models.family import Source
from proxytune.models.loading.files import locate, read_json

Module = PreTrainedModel | PeftModel
ADAPTERS_OFF = "<off>"
"""The adapter state of a member that uses a shared PEFT module without any of its adapters."""
_ALTERING = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Values of `init_lora_weights` that begin so change the weights under the adapter."""
_NOT_SAVED = ("pissa_niter", "corda", "loftq", "lora_ga")
"""Those of them whose changed weights cannot be recomputed from the adapter and the plain module."""


def modules_of(sources: Mapping[str, Source]) -> dict[str, Hashable]:
    """Roles with equal values share a module: sources that differ in an adapter which leaves the module as it is.

    PEFT puts adapters of only one type on a module; adapters of another type than the first get their own module.
    """
    found, types = {role: _module_of(source) for role, source in sources.items()}, dict[Hashable, str]()
    for role, source in sources.items():
        if source.adapter is not None:
            kind, module = str(adapter_config(source).peft_type), found[role]
            found[role] = module if types.setdefault(module, kind) == kind else (module, kind)
    return found


def _module_of(source: Source) -> Hashable:
    if source.adapter is None or not alters(adapter_config(source)):
        return source.module
    return source.module, source.adapter, source.adapter_revision


def alters(config: PeftConfig) -> bool:
    """Whether the adapter changes the module under it, so that switching it off does not give the plain model."""
    biases = getattr(config, "bias", "none") != "none"
    return biases or _initialised(config).startswith(_ALTERING) or bool(getattr(config, "layer_replication", None))


def over_changed_module(config: PeftConfig) -> dict[str, bool | None]:
    """Settings for an adapter that is saved next to its changed module, so that it does not change the module again."""
    settings: dict[str, bool | None] = {}
    if _initialised(config).startswith(_ALTERING):
        settings["init_lora_weights"] = True
    if getattr(config, "layer_replication", None):
        settings["layer_replication"] = None
    return settings


def check_adapter(source: Source) -> None:
    """UserError for an adapter that cannot be used, from its configuration alone."""
    config = adapter_config(source)
    check_kind(config, repr(source.adapter))
    if _initialised(config).startswith(_NOT_SAVED):
        raise UserError(
            f"adapter {source.adapter!r} has init_lora_weights={_initialised(config)}: the weights that it was "
            "trained over are not saved with it; convert it to plain LoRA, as PEFT's documentation of that method says"
        )


def check_kind(config: PeftConfig, name: str) -> None:
    """UserError for a kind of adapter that no member can have."""
    if config.is_prompt_learning or config.is_adaption_prompt:
        raise UserError(
            f"adapter {name} is of type {PeftType(config.peft_type).value}: only adapters of weights are supported"
        )
    if getattr(config, "alora_invocation_tokens", None):
        raise UserError(f"adapter {name} has alora_invocation_tokens, which decoding token by token does not see")


def check_state(model: Module, adapter: str | None) -> None:
    """UserError where `model` cannot be used in the adapter state `adapter`."""
    if not isinstance(model, PeftModel):
        if adapter is not None:
            raise UserError(f"adapter {adapter!r} needs a PeftModel, not {type(model).__name__}")
        return
    for name, config in model.peft_config.items():
        check_kind(config, repr(name))
    if adapter is None:
        return
    if adapter not in (ADAPTERS_OFF, *model.peft_config):
        raise unknown_name("adapter", adapter, model.peft_config)
    if has_merged_adapters(model):
        raise UserError("the shared module has merged adapters, which can't be switched: unmerge them")
    for name, config in model.peft_config.items():
        if name != adapter and alters(config):
            raise UserError(
                f"adapter {name!r} has changed the weights of the module under it, so switching it off does not "
                "give the plain model: load the model without it a second time"
            )


def load_adapter(model: Module, role: str, source: Source, name: str) -> PeftModel:
    """Puts the adapter of `source` on `model` under `name`. Raises UserError unless every tensor fits."""
    adapter = str(source.adapter)
    misfit = f"{role}: adapter {adapter!r} does not fit {source.path!r}: "
    config = adapter_config(source)
    config.inference_mode = True
    try:
        if not isinstance(model, PeftModel):
            model = PeftModelForCausalLM(model, config, adapter_name=name)
        result = model.load_adapter(adapter, adapter_name=name, revision=source.adapter_revision)
    except (ValueError, RuntimeError, KeyError) as error:
        raise UserError(misfit + first_line(error)) from error
    if lost := sorted([*_missing(model, result.missing_keys), *result.unexpected_keys]):
        raise UserError(misfit + f"{len(lost)} tensors have no counterpart, first {lost[0]!r}")
    return model.eval().requires_grad_(False)


def _missing(model: PeftModel, names: Sequence[str]) -> list[str]:
    """Those of `names` that are not other names of a weight that was found (VB-LoRA shares one bank of vectors)."""
    weights = model.state_dict()
    found = {weight.data_ptr() for name, weight in weights.items() if name not in names}
    return [name for name in names if name not in weights or weights[name].data_ptr() not in found]


def needs_others_first(source: Source) -> bool:
    """Whether PEFT can put no adapter without trainable tokens on the module after this one."""
    return source.adapter is not None and bool(getattr(adapter_config(source), "trainable_token_indices", None))


def hashes(model: Module) -> dict[str, str]:
    """Hash of each of the module's own weights, by the name that it has without adapters."""
    weights = weights_without_adapters(model) if isinstance(model, PeftModel) else model.state_dict()
    return {name: _hash(weight) for name, weight in weights.items()}


def _hash(weight: Tensor) -> str:
    if weight.is_meta:  # offloaded
        return ""
    return hashlib.sha256(weight.detach().cpu().reshape(-1).view(torch.uint8).numpy().data).hexdigest()


def adapter_config(source: Source) -> PeftConfig:
    """UserError for a kind of adapter, or a setting of one, that the installed PEFT does not know."""
    path, revision = str(source.adapter), source.adapter_revision
    settings = read_json(cast(Path, locate(path, "adapter_config.json", revision)))
    try:
        with warnings.catch_warnings(action="ignore"):  # about settings it does not know; only those in use matter
            config = PeftConfig.from_pretrained(path, revision=revision)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"PEFT {peft.__version__} can't read adapter {path!r}: {first_line(error)}") from error
    if unknown := {key: value for key, value in settings.items() if value and not hasattr(config, key)}:
        raise UserError(f"PEFT {peft.__version__} does not know these settings of adapter {path!r}: {unknown}")
    return config


def _initialised(config: PeftConfig) -> str:
    return str(getattr(config, "init_lora_weights", "")).lower()
