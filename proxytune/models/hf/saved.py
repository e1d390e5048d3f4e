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
from typing import TYPE_CHECKING, Any, cast

from huggingface_hub import snapshot_download
from peft import PeftModel
from transformers import AutoConfig, PreTrainedModel

from proxytune.compat.peft import weights_without_adapters
from proxytune.console import loading_bars
from proxytune.errors import UserError
from proxytune.fusion import RULES, Rule
from proxytune.models.chat import ChatPrompt
from proxytune.models.family import FamilySpec, Source, is_local
from proxytune.models.loading.files import hub_errors
from proxytune.models.loading.load import load
from proxytune.models.member import ADAPTERS_OFF, Member

if TYPE_CHECKING:
    from proxytune.models.hf.causal_lm import FusedCausalLM
    from proxytune.models.hf.config import FusedConfig

_FROM_AUTO = ("adapter_kwargs", "trust_remote_code")
"""What the Auto classes pass on. Nothing of it reaches the members: they never run code of their own from here."""

_SHIM = "modeling_proxytune"
_SHIM_CODE = """from proxytune.models.hf.causal_lm import FusedCausalLM
from proxytune.models.hf.config import FusedConfig

__all__ = ["FusedCausalLM", "FusedConfig"]
"""
"""All the code that `trust_remote_code` lets run: an import of the installed package."""


@loading_bars()
def write(model: FusedCausalLM, save_directory: str | PathLike, max_shard_size: str = "50GB") -> None:
    """Writes safetensors, configs and tokenizers. UserError for what could not be read back the same."""
    folder = Path(save_directory)
    if folder.is_file():
        raise UserError(f"can't save into {str(folder)!r}: it is a file.")
    members = {role: model.ensemble[role] for role in model.roles}
    homes = _homes(members)
    config = deepcopy(model.config)
    config.family = _family(members, homes, model)
    config.rule = None if model.rule is None else describe_rule(model.rule)
    FamilySpec.of(config.family)
    for member in {id(member.model): member for member in members.values()}.values():
        home = folder / homes[id(member.model)]
        _write_module(member.model, home, max_shard_size)
        (member.tokenizer or model.tokenizer).save_pretrained(home)
    for role, member in members.items():
        if isinstance(member.model, PeftModel) and member.adapter not in (None, ADAPTERS_OFF):
            _write_adapter(member.model, str(member.adapter), folder / _slug(role))
    model.tokenizer.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    config.auto_map = {"AutoConfig": f"{_SHIM}.FusedConfig", "AutoModelForCausalLM": f"{_SHIM}.FusedCausalLM"}
    config.save_pretrained(folder)
    (folder / f"{_SHIM}.py").write_text(_SHIM_CODE, encoding="utf-8")


@loading_bars()
def read(
    cls: type[FusedCausalLM],
    path: str,
    config: FusedConfig | None = None,
    rule: Rule | None = None,
    revision: str | None = None,
    dtype: Any = None,
    device_map: str | Mapping[str, Any] | None = None,
    attn_implementation: str | None = None,
    **others: Any,
) -> FusedCausalLM:
    """The model that `write` wrote to a folder or a hub id; `rule` replaces the saved one. UserError for damage."""
    for name, value in others.items():
        if value not in (None, False, "") and not name.startswith("_") and name not in _FROM_AUTO:
            raise UserError(f"FusedCausalLM.from_pretrained does not take {name}={value!r}.")
    folder = _fetch(path, revision)
    if not (folder / "config.json").is_file():
        raise UserError(f"{path!r} is not a saved FusedCausalLM: it has no config.json.")
    try:
        config = config or AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:  # of a kind that only code beside it knows, say
        raise UserError(f"{path!r} is not a saved FusedCausalLM: {str(error).splitlines()[0]}") from error
    family = getattr(config, "family", None)
    if config is None or family is None:
        raise UserError(f"{path!r} is not a saved FusedCausalLM: its config.json describes no family.")
    given = {"dtype": _name(dtype), "device_map": _device(device_map), "attn_implementation": attn_implementation}
    options = {name: value for name, value in given.items() if value is not None}
    ensemble = load(_inside(FamilySpec.of(family), folder, options))
    if rule is None and config.rule is not None:
        rule = build_rule(config.rule)
    model = cls.from_ensemble(ensemble, rule)
    model.config.name_or_path = model.name_or_path = path
    model.generation_config = type(model.generation_config).from_pretrained(folder)
    return model


def describe_rule(rule: Rule) -> dict[str, Any]:
    """A rule as plain data: its id and its parameters."""
    if RULES.get(rule.id) not in (None, type(rule)):
        raise UserError(f"{type(rule).__name__} has the id {rule.id!r} of another rule: give it one of its own.")
    return {"id": rule.id, **asdict(cast(Any, rule))}


def build_rule(description: Mapping[str, Any]) -> Rule:
    """The rule that `describe_rule` described; only rules of `proxytune.fusion` are built from data."""
    parameters = dict(description)
    kind = RULES.get(parameters.pop("id"))
    if kind is None:
        raise UserError(f"no rule has the id {description['id']!r}: pass your own as from_pretrained(..., rule=...).")
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


def _family(members: Mapping[str, Member], homes: Mapping[int, str], model: FusedCausalLM) -> dict[str, Any]:
    sources: dict[str, dict[str, Any]] = {}
    for role, member in members.items():
        source = sources[role] = {"path": homes[id(member.model)]}
        if member.adapter not in (None, ADAPTERS_OFF):
            source["adapter"] = _slug(role)
        if isinstance(member.render, ChatPrompt):
            source["chat"] = asdict(member.render.chat)
        elif member.render is not None:
            raise UserError(f"{role}: its prompt is rendered by {member.render!r}, which can't be saved.")
    family: dict[str, Any] = {role: sources[role] for role in ("base", "antiexpert") if role in sources}
    family["experts"] = {role.removeprefix("expert:"): sources[role] for role in model.experts}
    vocabulary = model.tokenizer.get_vocab()
    differ = any(m.tokenizer is not None and m.tokenizer.get_vocab() != vocabulary for m in members.values())
    family["missing_tokens"] = "base_only" if differ else "refuse"
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
            raise UserError(f"no such folder: {path!r}.")
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
        raise UserError(f"a saved FusedCausalLM holds its members in sub-folders, not in {name!r}.")
    return str(folder / name)


def _name(dtype: Any) -> str | None:
    return None if dtype is None else str(dtype).removeprefix("torch.")


def _device(device_map: str | Mapping[str, Any] | None) -> str | None:
    """A device map of the family: one device, also as {"": device}, or "auto"."""
    if isinstance(device_map, Mapping):
        if list(device_map) != [""]:
            raise UserError(f"device_map={dict(device_map)!r}: the members of a family go to one device, or to auto.")
        device_map = device_map[""]
    return None if device_map is None else str(device_map)
