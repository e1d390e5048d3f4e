"""A FusedCausalLM as a folder, and back.

    config.json, generation_config.json, tokenizer files     the fused model: its rule, and its family as relative paths
    base/, antiexpert/, expert-<name>/                       one ordinary Hugging Face folder per module or adapter
    modeling_proxytune.py                                    lets programs that do not import proxytune load the folder
                                                             with trust_remote_code=True (stock lm-eval, say)

Reading builds a FamilySpec of the sub-folders, so a module that members share is stored and loaded once.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, replace
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, cast

from huggingface_hub import snapshot_download
from peft import PeftModel
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

from proxytune.compat.peft import weights_without_adapters
from proxytune.console import loading_bars
from proxytune.errors import UserError
from proxytune.fusion import RULES, Rule
from proxytune.models.chat import ChatPrompt
from proxytune.models.ensemble import Ensemble
from proxytune.models.family import FamilySpec, Source, is_local
from proxytune.models.hf.config import FusedConfig
from proxytune.models.loading.files import hub_errors
from proxytune.models.loading.load import load
from proxytune.models.member import ADAPTERS_OFF, Member

_FROM_AUTO = ("adapter_kwargs", "trust_remote_code")
"""What the Auto classes pass on. Nothing of it reaches the members: they never run code of their own from here."""

_SHIM = "modeling_proxytune"
_SHIM_CODE = """from proxytune import FusedCausalLM, FusedConfig

__all__ = ["FusedCausalLM", "FusedConfig"]
"""
"""All the code that `trust_remote_code` lets run: an import of the installed package."""


class Saved(NamedTuple):
    """What a folder holds."""

    ensemble: Ensemble
    rule: Rule | None
    generation_config: GenerationConfig


@loading_bars()
def write(
    save_directory: str | PathLike,
    members: Ensemble,
    rule: Rule | None,
    config: FusedConfig,
    generation_config: GenerationConfig,
    max_shard_size: str = "50GB",
) -> None:
    """Writes safetensors, configs and tokenizers. UserError for what could not be read back the same."""
    folder = Path(save_directory)
    if folder.is_file():
        raise UserError(f"can't save into {str(folder)!r}: it is a file")
    homes = _homes(members.members)
    config = deepcopy(config)
    config.family = _family(members, homes)
    config.rule = None if rule is None else describe_rule(rule)
    FamilySpec.of(config.family)
    for member in {id(member.model): member for member in members.members.values()}.values():
        home = folder / homes[id(member.model)]
        _write_module(member.model, home, max_shard_size)
        (member.tokenizer or members.tokenizer).save_pretrained(home)
    for role, member in members.members.items():
        if isinstance(member.model, PeftModel) and member.adapter not in (None, ADAPTERS_OFF):
            _write_adapter(member.model, str(member.adapter), folder / _slug(role))
    members.tokenizer.save_pretrained(folder)
    generation_config.save_pretrained(folder)
    config.auto_map = {"AutoConfig": f"{_SHIM}.FusedConfig", "AutoModelForCausalLM": f"{_SHIM}.FusedCausalLM"}
    config.save_pretrained(folder)
    (folder / f"{_SHIM}.py").write_text(_SHIM_CODE, encoding="utf-8")


@loading_bars()
def read(
    path: str,
    config: FusedConfig | None = None,
    rule: Rule | None = None,
    revision: str | None = None,
    dtype: Any = None,
    device_map: str | Mapping[str, Any] | None = None,
    attn_implementation: str | None = None,
    **others: Any,
) -> Saved:
    """What `write` wrote to a folder or a hub id; `rule` replaces the saved one. UserError for damage."""
    for name, value in others.items():
        if value not in (None, False, "") and not name.startswith("_") and name not in _FROM_AUTO:
            raise UserError(f"FusedCausalLM.from_pretrained does not take {name}={value!r}")
    folder = _fetch(path, revision)
    config = config or _read_config(path, folder)
    if config.family is None:
        raise UserError(f"{path!r} is not a saved FusedCausalLM: its config.json describes no family")
    given = {"dtype": _name(dtype), "device_map": _device(device_map), "attn_implementation": attn_implementation}
    options = {name: value for name, value in given.items() if value is not None}
    ensemble = load(_inside(FamilySpec.of(config.family), folder, options))
    if rule is None and config.rule is not None:
        rule = build_rule(config.rule)
    return Saved(ensemble, rule, GenerationConfig.from_pretrained(folder))


def _read_config(path: str, folder: Path) -> FusedConfig:
    if not (folder / "config.json").is_file():
        raise UserError(f"{path!r} is not a saved FusedCausalLM: it has no config.json")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:  # of a kind that only code beside it knows, say
        raise UserError(f"{path!r} is not a saved FusedCausalLM: {str(error).splitlines()[0]}") from error
    if not isinstance(config, FusedConfig):
        raise UserError(f"{path!r} is not a saved FusedCausalLM: its model_type is {config.model_type}")
    return config


def describe_rule(rule: Rule) -> dict[str, Any]:
    """A rule as plain data: its id and its parameters."""
    if RULES.get(rule.id) not in (None, type(rule)):
        raise UserError(f"{type(rule).__name__} has the id {rule.id!r} of another rule: give it one of its own")
    return {"id": rule.id, **asdict(cast(Any, rule))}


def build_rule(description: Mapping[str, Any]) -> Rule:
    """The rule that `describe_rule` described; only rules of `proxytune.fusion` are built from data."""
    parameters = dict(description)
    kind = RULES.get(parameters.pop("id"))
    if kind is None:
        raise UserError(f"no rule has the id {description['id']!r}: pass your own as from_pretrained(..., rule=...)")
    return kind(**parameters)


def _slug(role: str) -> str:
    return role.replace(":", "-")


def _homes(members: Mapping[str, Member]) -> dict[int, str]:
    """The sub-folder of each module, by the module's id: that of the first role that uses it without an adapter."""
    homes: dict[int, str] = {}
    for role, member in members.items():
        if member.adapter in (None, ADAPTERS_OFF):
            homes.setdefault(id(member.model), _slug(role))
    for role, member in members.items():
        homes.setdefault(id(member.model), f"{_slug(role)}-module")
    return homes


def _family(ensemble: Ensemble, homes: Mapping[int, str]) -> dict[str, Any]:
    sources: dict[str, dict[str, Any]] = {}
    for role, member in ensemble.members.items():
        source = sources[role] = {"path": homes[id(member.model)]}
        if member.adapter not in (None, ADAPTERS_OFF):
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


def _write_module(model: PreTrainedModel | PeftModel, home: Path, max_shard_size: str) -> None:
    if not isinstance(model, PeftModel):
        model.save_pretrained(home, max_shard_size=max_shard_size)
        return
    plain = cast(PreTrainedModel, model.get_base_model())
    plain.save_pretrained(
        home, state_dict=weights_without_adapters(model), max_shard_size=max_shard_size, save_peft_format=False
    )


def _write_adapter(model: PeftModel, adapter: str, folder: Path) -> None:
    model.save_pretrained(str(folder), selected_adapters=[adapter])
    nested = folder / adapter
    if nested.is_dir():  # PEFT puts every adapter but "default" one level down
        for file in nested.iterdir():
            file.replace(folder / file.name)
        nested.rmdir()


def _fetch(path: str, revision: str | None) -> Path:
    if is_local(path):
        folder = Path(path).expanduser()
        if not folder.is_dir():
            raise UserError(f"no such folder: {path!r}")
        return folder
    with hub_errors(path, revision):
        return Path(snapshot_download(path, revision=revision))


def _inside(spec: FamilySpec, folder: Path, options: Mapping[str, Any]) -> FamilySpec:
    """`spec` with its paths, which must stay inside, joined to `folder`, and with load options."""

    def joined(source: Source) -> Source:
        adapter = None if source.adapter is None else _sub_folder(folder, source.adapter)
        return replace(
            source, path=_sub_folder(folder, source.path), adapter=adapter, trust_remote_code=False, **options
        )

    return replace(
        spec,
        base=joined(spec.base),
        antiexpert=None if spec.antiexpert is None else joined(spec.antiexpert),
        experts={name: joined(source) for name, source in spec.experts.items()},
    )


def _sub_folder(folder: Path, name: str) -> str:
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(f"a saved FusedCausalLM holds its members in sub-folders, not in {name!r}")
    return str(folder / name)


def _name(dtype: Any) -> str | None:
    return None if dtype is None else str(dtype).removeprefix("torch.")


def _device(device_map: str | Mapping[str, Any] | None) -> str | None:
    """A device map of the family: one device, also as {"": device}, or "auto"."""
    if isinstance(device_map, Mapping):
        if list(device_map) != [""]:
            raise UserError(f"device_map={dict(device_map)!r}: the members of a family go to one device, or to auto")
        device_map = device_map[""]
    return None if device_map is None else str(device_map)
