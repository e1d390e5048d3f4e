"""Writing a FusedCausalLM as the folder that `saved` describes."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any, cast

from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel

from proxytune.atomic import write_json
from proxytune.compat.peft import active_adapters, has_adapters, has_merged_adapters, weights_without_adapters
from proxytune.console import loading_bars
from proxytune.errors import UserError
from proxytune.fusion import RULES, Rule
from proxytune.models.chat import ChatPrompt
from proxytune.models.ensemble import Ensemble
from proxytune.models.family import FamilySpec
from proxytune.models.hf.config import FusedConfig
from proxytune.models.loading.adapters import over_changed_module
from proxytune.models.loading.files import read_json
from proxytune.models.member import ADAPTERS_OFF, Member

_SHIM = "modeling_proxytune"
_SHIM_CODE = """from proxytune import FusedCausalLM, FusedConfig

__all__ = ["FusedCausalLM", "FusedConfig"]
"""
"""All the code that `trust_remote_code` lets run: an import of the installed package."""


_USUAL = {"safe_serialization": True, "save_peft_format": True, "save_original_format": True}
"""Options of transformers whose usual value is what is done here; others are usually None or False."""


def check_options(others: Mapping[str, Any], state_dict: object, push_to_hub: object) -> None:
    """UserError for what transformers' `save_pretrained` would do and `write` does not."""
    if push_to_hub:
        raise UserError("save_pretrained does not take push_to_hub: call push_to_hub(repo_id) of the model")
    if state_dict is not None:
        raise UserError("save_pretrained does not take state_dict: each member is saved with the weights that it has")
    for name, value in others.items():
        if value is not None and value != _USUAL.get(name, False):
            raise UserError(f"save_pretrained of a FusedCausalLM does not take {name}={value!r}")


@loading_bars()
def write(
    save_directory: str | PathLike,
    members: Ensemble,
    rule: Rule | None,
    config: FusedConfig,
    generation_config: GenerationConfig,
    max_shard_size: int | str,
) -> None:
    """Writes safetensors, configs and tokenizers. UserError for what could not be read back the same."""
    folder = Path(save_directory)
    if folder.is_file():
        raise UserError(f"can't save into {str(folder)!r}: it is a file")
    adapters = {role: _adapter(member) for role, member in members.members.items()}
    homes = _homes(members.members, adapters)
    config = deepcopy(config)
    config.dtype = members["base"].model.dtype
    config.family = _family(members, homes, adapters)
    config.rule = None if rule is None else describe_rule(rule)
    FamilySpec.of(config.family)
    for member in {id(member.model): member for member in members.members.values()}.values():
        home = folder / homes[id(member.model)]
        _write_module(member.model, home, max_shard_size)
        (member.tokenizer or members.tokenizer).save_pretrained(home)
    for role, adapter in adapters.items():
        if adapter is not None:
            _write_adapter(cast(PeftModel, members[role].model), adapter, folder / _slug(role))
    members.tokenizer.save_pretrained(folder)
    generation_config.save_pretrained(folder)
    config.auto_map = {"AutoConfig": f"{_SHIM}.FusedConfig", "AutoModelForCausalLM": f"{_SHIM}.FusedCausalLM"}
    config.save_pretrained(folder)
    (folder / f"{_SHIM}.py").write_text(_SHIM_CODE, encoding="utf-8")


def describe_rule(rule: Rule) -> dict[str, Any]:
    """A rule as plain data: its id and its parameters."""
    if RULES.get(rule.id) not in (None, type(rule)):
        raise UserError(f"{type(rule).__name__} has the id {rule.id!r} of another rule: give it one of its own")
    return {"id": rule.id, **asdict(cast(Any, rule))}


def _slug(role: str) -> str:
    return role.replace(":", "-")


def _adapter(member: Member) -> str | None:
    """The adapter that `member` is used with, to be written beside its module.

    UserError where that is not one, and for weights that accelerate keeps elsewhere unknown to transformers.
    """
    if member.model.device.type == "meta" and not hasattr(member.model, "hf_device_map"):
        raise UserError(f"{member.role}: its weights are offloaded: save the model before offloading it")
    if not isinstance(member.model, PeftModel):
        if has_adapters(member.model):
            raise UserError(
                f"{member.role}: an adapter inside a plain model is not saved: give a PeftModel "
                "(PeftModel.from_pretrained) or a Source(path, adapter=...)"
            )
        return None
    if member.adapter is not None:
        return None if member.adapter == ADAPTERS_OFF else member.adapter
    if has_merged_adapters(member.model):
        raise UserError(f"{member.role}: its adapters are merged into its weights: unmerge them, or merge_and_unload")
    active = active_adapters(member.model)
    if len(active) > 1:
        raise UserError(f"{member.role} has {len(active)} active adapters: combine them (add_weighted_adapter) to save")
    return active[0] if active else None


def _homes(members: Mapping[str, Member], adapters: Mapping[str, str | None]) -> dict[int, str]:
    """The sub-folder of each module, by the module's id: that of the first role that uses it without an adapter."""
    homes: dict[int, str] = {}
    for role, member in members.items():
        if adapters[role] is None:
            homes.setdefault(id(member.model), _slug(role))
    for role, member in members.items():
        homes.setdefault(id(member.model), f"{_slug(role)}-module")
    return homes


def _family(ensemble: Ensemble, homes: Mapping[int, str], adapters: Mapping[str, str | None]) -> dict[str, Any]:
    sources: dict[str, dict[str, Any]] = {}
    for role, member in ensemble.members.items():
        source = sources[role] = {"path": homes[id(member.model)]}
        if adapters[role] is not None:
            source["adapter"] = _slug(role)
        if isinstance(member.render, ChatPrompt):
            source["chat"] = asdict(member.render.chat)
        elif member.render is not None:
            raise UserError(f"{role}: its prompt is rendered by {member.render!r}, which can't be saved")
    family: dict[str, Any] = {role: sources[role] for role in ("base", "antiexpert") if role in sources}
    family["experts"] = {role.removeprefix("expert:"): sources[role] for role in sources if role.startswith("expert:")}
    vocabulary = ensemble.tokenizer.get_vocab()
    others = [member.tokenizer for member in ensemble.members.values() if member.tokenizer is not None]
    differ = any(tokenizer.get_vocab() != vocabulary for tokenizer in others)
    family["missing_tokens"] = "base_only" if differ else "refuse"
    family["end_tokens"] = None if ensemble.end_tokens is None else list(ensemble.end_tokens)
    return family


def _write_module(model: PreTrainedModel | PeftModel, home: Path, max_shard_size: int | str) -> None:
    if not isinstance(model, PeftModel):
        model.save_pretrained(home, max_shard_size=max_shard_size)
        return
    plain = cast(PreTrainedModel, model.get_base_model())
    weights = weights_without_adapters(model)
    if any(getattr(config, "layer_replication", None) for config in model.peft_config.values()):
        weights = {name: weight.clone() for name, weight in weights.items()}  # files share no tensors
    plain.save_pretrained(home, state_dict=weights, max_shard_size=max_shard_size, save_peft_format=False)


def _write_adapter(model: PeftModel, adapter: str, folder: Path) -> None:
    """The adapter as one over the module beside it, which it may have changed already."""
    model.save_pretrained(str(folder), selected_adapters=[adapter])
    nested = folder / adapter
    if nested.is_dir():  # PEFT puts every adapter but "default" one level down
        for file in nested.iterdir():
            file.replace(folder / file.name)
        nested.rmdir()
    file = folder / "adapter_config.json"
    write_json(file, read_json(file) | over_changed_module(model.peft_config[adapter]))
