"""A FusedCausalLM as a folder, and back.

    config.json, generation_config.json, tokenizer files     the fused model: its rule, and its family as relative paths
    base/, antiexpert/, expert-<name>/                       one ordinary Hugging Face folder per module or adapter
    modeling_proxytune.py                                    lets programs that do not import proxytune load the folder
                                                             with trust_remote_code=True (such as stock lm-eval)

Reading builds a FamilySpec of the sub-folders, so a module that members share is stored and loaded once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import snapshot_download
from transformers import AutoConfig, GenerationConfig

from proxytune.compat.transformers import requested_kernels
from proxytune.console import loading_bars
from proxytune.errors import UserError
from proxytune.fusion import RULES, Rule
from proxytune.models.ensemble import Ensemble
from proxytune.models.family import FamilySpec, Source, is_local
from proxytune.models.hf.config import FusedConfig
from proxytune.models.loading.files import hub_errors
from proxytune.models.loading.load import load

_HUB = ("cache_dir", "force_download", "local_files_only", "token")
"""How a hub id is fetched."""
_USUALLY = ("use_cache", "use_safetensors")
"""Options that are true for every member; others are usually None or False."""
_NO_EFFECT = ("adapter_kwargs", "low_cpu_mem_usage", "trust_remote_code")
"""Passed on by the Auto classes, or without effect in transformers too. Members never run code of their own from
here."""
_APPLIED = ("dtype", "family", "rule")
"""What a given config may change in the saved one, besides the attention."""


class Saved(NamedTuple):
    """What a folder holds."""

    ensemble: Ensemble
    rule: Rule | None
    generation_config: GenerationConfig


@loading_bars()
def read(
    path: str,
    config: FusedConfig | None = None,
    rule: Rule | None = None,
    revision: str | None = None,
    subfolder: str = "",
    dtype: Any = None,
    torch_dtype: Any = None,
    device_map: str | Mapping[str, Any] | None = None,
    attn_implementation: str | None = None,
    **others: Any,
) -> Saved:
    """What `saving.write` wrote to a folder or a hub id; `rule` replaces the saved one.

    `config` may be the saved one with another rule, dtype or attention: what the Auto classes make of their arguments.
    `dtype` (or its older name `torch_dtype`), `device_map` and `attn_implementation` are those of every member.
    UserError for damage, and for options of transformers that have no meaning here.
    """
    hub = {name: others.pop(name) for name in _HUB if name in others}
    kernels = {} if config is None else requested_kernels(config)
    attn_implementation = attn_implementation or kernels.pop("attn_implementation", None)
    _check_options({**others, **kernels})
    folder = _fetch(path, revision, subfolder, hub)
    saved = _read_config(path, folder)
    config = saved if config is None else _check_config(config, saved)
    if config.family is None:
        raise UserError(f"{path!r} is not a saved FusedCausalLM: its config.json describes no family")
    given = {
        "dtype": _name(dtype or torch_dtype or (config.dtype if config.dtype != saved.dtype else None)),
        "device_map": _device(device_map),
        "attn_implementation": attn_implementation,
    }
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


def _check_options(others: Mapping[str, Any]) -> None:
    for name, value in others.items():
        if value not in (None, name in _USUALLY, "") and not name.startswith("_") and name not in _NO_EFFECT:
            raise UserError(f"FusedCausalLM.from_pretrained does not take {name}={value!r}")


def _check_config(config: FusedConfig, saved: FusedConfig) -> FusedConfig:
    """UserError where `config` differs from the saved one in what would have no effect."""
    if not isinstance(config, FusedConfig):
        raise UserError(f"config must be a FusedConfig, not {type(config).__name__}")
    given, own = config.to_dict(), saved.to_dict()
    for name in sorted(given.keys() - {*_APPLIED, "auto_map"}):  # transformers puts the hub id before its values
        if given[name] != own.get(name) and not name.startswith("_"):
            raise UserError(
                f"FusedCausalLM.from_pretrained does not take {name}={given[name]!r}: a config may change "
                f"{', '.join(_APPLIED)} and attn_implementation"
            )
    return config


def build_rule(description: Mapping[str, Any]) -> Rule:
    """The rule that `describe_rule` described; only rules of `proxytune.fusion` are built from data."""
    parameters = dict(description)
    kind = RULES.get(parameters.pop("id"))
    if kind is None:
        raise UserError(f"no rule has the id {description['id']!r}: pass your own as from_pretrained(..., rule=...)")
    return kind(**parameters)


def _fetch(path: str, revision: str | None, subfolder: str, hub: Mapping[str, Any]) -> Path:
    if is_local(path):
        folder = Path(path).expanduser() / subfolder
        if not folder.is_dir():
            raise UserError(f"no such folder: {str(folder)!r}")
        return folder
    with hub_errors(path, revision):
        files = f"{subfolder}/*" if subfolder else None
        return Path(snapshot_download(path, revision=revision, allow_patterns=files, **hub)) / subfolder


def _inside(spec: FamilySpec, folder: Path, options: Mapping[str, Any]) -> FamilySpec:
    """`spec` with its paths, which must stay inside, joined to `folder`, and with load options."""

    def joined(source: Source) -> Source:
        adapter = None if source.adapter is None else _sub_folder(folder, source.adapter)
        return replace(
            source, path=_sub_folder(folder, source.path), adapter=adapter, trust_remote_code=False, **options
        )

    return replace(
        spec,
        base=joined(spec.weights("base")),
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
