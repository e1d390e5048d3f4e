"""Where the members of a family come from: descriptions only, nothing is read or loaded here."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from proxytune.errors import UserError, unknown_name
from proxytune.models import trained
from proxytune.models.chat import Chat
from proxytune.models.vocabulary import MissingTokens, check_policy

DTYPES = ("auto", "float32", "bfloat16", "float16")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
_Described = TypeVar("_Described", bound="Source | FamilySpec")


@dataclass(frozen=True)
class Source:
    """One model: a hub id or a local folder, maybe as a GGUF file, maybe with a LoRA adapter over it."""

    path: str
    """Hub id ("org/name") or local folder; a path to a .gguf file stands for its folder and `gguf_file`;
    "trained:<hash>" stands for a model that `proxytune train` made, and for the adapter if it is one."""
    revision: str | None = None
    """Branch, tag or commit of a hub id; None: main. Pin a commit to make a run repeatable."""
    gguf_file: str | None = None
    """File name of GGUF weights in `path`; they are dequantised on loading."""
    adapter: str | None = None
    """Hub id or local folder of a PEFT adapter over `path`. Sources that differ only here share one module."""
    adapter_revision: str | None = None
    dtype: str = "auto"
    """auto (as stored; of an adapter called "trained:<hash>": as in its training), float32, bfloat16 or float16."""
    device_map: str | None = None
    """None: the first GPU if there is one, else the CPU; a device; or "auto" to spread the model over all devices."""
    attn_implementation: str | None = None
    """As in transformers: sdpa, eager, flash_attention_2, ...; None: its default."""
    max_memory: Mapping[str | int, str | int] | None = field(default=None, hash=False)
    """Most memory by device ({0: 70GiB, cpu: 100GiB}); only with device_map=auto."""
    quantization: Mapping[str, Any] | None = field(default=None, hash=False)
    """A quantisation config of transformers ({quant_method: bitsandbytes, load_in_4bit: true}); None: as stored."""
    chat: Chat | None = None
    """A chat model's own prompt: a mapping of `Chat` fields ({}: all defaults); None: it reads the plain prompt."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run. Only set it for models whose code you have read."""

    def __post_init__(self) -> None:
        for name in ("path", "adapter"):
            value = getattr(self, name)
            if isinstance(value, os.PathLike):
                object.__setattr__(self, name, os.fspath(value))
            elif not (isinstance(value, str) and value) and not (name == "adapter" and value is None):
                raise UserError(f"{name} of a model source must be a hub id or a local folder, not {value!r}.")
        if self.path.startswith(trained.PREFIX):
            self._take_trained()
        self._check_types()
        if self.dtype not in DTYPES:
            raise unknown_name("dtype", self.dtype, DTYPES)
        for given, needed in (("revision", "path"), ("adapter_revision", "adapter")):
            target = getattr(self, needed)
            if getattr(self, given) is not None and (target is None or is_local(target)):
                raise UserError(f"{given}={getattr(self, given)!r} has no effect: {needed}={target!r} is not a hub id.")
        if self.max_memory is not None and self.device_map != "auto":
            raise UserError(f"max_memory has no effect with device_map={self.device_map}: set device_map=auto.")
        if self.chat is not None:
            object.__setattr__(self, "chat", Chat.of(self.chat))
        if self.gguf_file is None and self.path.endswith(".gguf"):
            file = Path(self.path)
            object.__setattr__(self, "path", str(file.parent))
            object.__setattr__(self, "gguf_file", file.name)

    def _take_trained(self) -> None:
        for name in ("revision", "gguf_file", "adapter", "adapter_revision"):
            if getattr(self, name) is not None:
                raise UserError(f"{name}={getattr(self, name)!r} has no effect: {self.path} says how it is loaded.")
        for name, value in trained.find(self.path).items():
            if name != "dtype" or self.dtype == "auto":
                object.__setattr__(self, name, value)

    def _check_types(self) -> None:
        """A configuration may hold anything: the text "no", say, would count as true."""
        for kind, expected, names in (
            (str, "text in quotes", ("revision", "gguf_file", "adapter_revision", "device_map", "attn_implementation")),
            (Mapping, "a mapping", ("max_memory", "quantization")),
            (bool, "true or false", ("trust_remote_code",)),
        ):
            for name in names:
                value = getattr(self, name)
                if not isinstance(value, kind) and not (value is None and kind is not bool):
                    raise UserError(f"{name}={value!r} of a model source is not allowed: give {expected}.")

    @classmethod
    def of(cls, value: Source | str | Path | Mapping[str, Any], where: str = "source") -> Source:
        """A Source from a path or from a mapping of its fields; `where` is the config key that errors name."""
        if isinstance(value, Source):
            return value
        if isinstance(value, str | Path):
            return cls(str(value))
        return _describe(cls, value, where)

    @property
    def module(self) -> Source:
        """The source of the module itself: sources with equal modules share it in memory."""
        path = str(Path(self.path).expanduser().resolve()) if is_local(self.path) else self.path
        return replace(self, path=path, adapter=None, adapter_revision=None, chat=None)


@dataclass(frozen=True)
class FamilySpec:
    """The members of a family by role: a large base, a small antiexpert, experts tuned from it, tuned large models."""

    base: Source
    antiexpert: Source | None = None
    """The small untuned model that every expert was tuned from; needed as soon as there are experts."""
    experts: Mapping[str, Source] = field(default_factory=dict)
    """Small tuned models by name."""
    tuned: Mapping[str, Source] = field(default_factory=dict)
    """Large models tuned directly, by name: the upper bounds."""
    missing_tokens: MissingTokens = "refuse"
    """What to do where members know different tokens: see `proxytune.models.vocabulary.MissingTokens`."""
    data_dir: str | None = None
    """Folder of task data that belongs to the family (the miniature brings its own)."""

    def __post_init__(self) -> None:
        check_policy(self.missing_tokens)
        if self.data_dir is not None and not isinstance(self.data_dir, str | os.PathLike):
            raise UserError(f"models.data_dir={self.data_dir!r} is not allowed: give a folder.")
        put = object.__setattr__
        put(self, "base", Source.of(self.base, "base"))
        if self.antiexpert is not None:
            put(self, "antiexpert", Source.of(self.antiexpert, "antiexpert"))
        put(self, "experts", _named_sources(self.experts, "experts"))
        put(self, "tuned", _named_sources(self.tuned, "tuned"))
        if self.experts and self.antiexpert is None:
            raise UserError("the family has experts but no antiexpert: give the small model they were tuned from.")

    @classmethod
    def of(cls, value: FamilySpec | Mapping[str, Any], where: str = "models") -> FamilySpec:
        """A FamilySpec from a mapping of its fields (a Hydra config, say); unknown keys are refused."""
        return value if isinstance(value, FamilySpec) else _describe(cls, value, where)

    @property
    def sources(self) -> dict[str, Source]:
        """Every source by role: "base", "antiexpert", "expert:<name>", "tuned:<name>"."""
        roles = {"base": self.base}
        if self.antiexpert is not None:
            roles["antiexpert"] = self.antiexpert
        roles |= {f"expert:{name}": source for name, source in self.experts.items()}
        return roles | {f"tuned:{name}": source for name, source in self.tuned.items()}


def is_local(path: str) -> bool:
    """Whether `path` is meant as a local folder or file: it exists, or it can't be a hub id."""
    expanded = Path(path).expanduser()
    return expanded.exists() or path.startswith((".", "~")) or expanded.is_absolute() or path.count("/") > 1


def _named_sources(sources: Mapping[str, Any], where: str) -> dict[str, Source]:
    if not isinstance(sources, Mapping):
        raise UserError(f"{where} must map names to sources, not be {sources!r}.")
    for name in sources:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UserError(f"{where}: {name!r} is not a name: use letters, digits, '_', '-' and '.'.")
    return {name: Source.of(source, f"{where}.{name}") for name, source in sources.items()}


def _describe(cls: type[_Described], value: Mapping[str, Any], where: str) -> _Described:
    """`cls` from a mapping of its fields, with a clear error for unknown and missing keys."""
    if not isinstance(value, Mapping):
        raise UserError(f"{where} must be a path or a mapping of {cls.__name__} fields, not {value!r}.")
    known = {f.name for f in fields(cls)}
    for key in value:
        if key not in known and key != "_target_":
            raise unknown_name(f"key in {where}", key, known)
    first = fields(cls)[0].name
    if first not in value:
        raise UserError(f"{where} lacks {first!r}: known keys are {', '.join(sorted(known))}.")
    try:
        return cls(**{key: item for key, item in value.items() if key != "_target_"})
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
