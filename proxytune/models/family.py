"""The sources of a family's members. This module only describes them; it reads and loads nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from proxytune.errors import UserError
from proxytune.models import trained
from proxytune.models.api.endpoint import Endpoint
from proxytune.models.chat import Chat
from proxytune.models.vocabulary import MissingTokens
from proxytune.validation import check, strict_dataclass

DType = Literal["auto", "float32", "bfloat16", "float16"]


def _path_text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.\-]*", text):
        raise ValueError(f"{text!r} is not a name: use letters, digits, '_', '-' and '.'")
    return text


PathText = Annotated[str, BeforeValidator(_path_text), Field(min_length=1)]
Name = Annotated[str, AfterValidator(_name)]


@strict_dataclass("source")
class Source:
    """A hub id or a local folder, or a mapping with it as `path`: one model, optionally with a LoRA adapter."""

    path: PathText
    """a hub id or a local folder. A path to a .gguf file stands for its folder and `gguf_file`; "trained:<hash>" stands
    for a model that `proxytune train` made, and for the adapter if it is one."""
    revision: str | None = None
    """a branch, tag or commit of a hub id, as text in quotes, or null for main. Pin a commit to make a run
    repeatable."""
    gguf_file: str | None = None
    """a file name of GGUF weights in `path`. They are dequantised on loading."""
    adapter: PathText | None = None
    """a hub id or a local folder of a PEFT adapter over `path`. Sources that differ only here share one module."""
    adapter_revision: str | None = None
    """a branch, tag or commit of the adapter's hub id, as text in quotes, or null for main"""
    dtype: DType = "auto"
    """auto (as stored; of an adapter called "trained:<hash>": as in its training), float32, bfloat16 or float16"""
    device_map: str | None = None
    """a device, "auto" to spread the model over all devices, or null for the first GPU if there is one, else the
    CPU"""
    attn_implementation: str | None = None
    """a name that transformers knows: sdpa, eager, flash_attention_2, ..., or null for its default"""
    max_memory: Mapping[str | int, str | int] | None = field(default=None, hash=False)
    """a mapping of devices to the most memory there ({0: 70GiB, cpu: 100GiB}). Only with device_map=auto."""
    quantization: Mapping[str, Any] | None = field(default=None, hash=False)
    """a mapping, the quantisation config of transformers ({quant_method: bitsandbytes, load_in_4bit: true}), or null:
    as stored"""
    chat: Chat | None = None
    """a mapping of `Chat` fields, the prompt of a chat model ({}: all defaults), or null: it reads the plain prompt"""
    trust_remote_code: bool = False
    """true or false: whether code that comes with the model may run. Only set it for models whose code you have
    read."""

    @model_validator(mode="before")
    @classmethod
    def _accept_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str | os.PathLike) else value

    def __post_init__(self) -> None:
        if self.path.startswith(trained.PREFIX):
            self._take_trained()
        for given, needed in (("revision", "path"), ("adapter_revision", "adapter")):
            target = getattr(self, needed)
            if getattr(self, given) is not None and (target is None or is_local(target)):
                raise ValueError(f"{given}={getattr(self, given)!r} has no effect: {needed}={target!r} is not a hub id")
        if self.max_memory is not None and self.device_map != "auto":
            raise ValueError(f"max_memory has no effect with device_map={self.device_map}: set device_map=auto")
        if self.gguf_file is None and self.path.endswith(".gguf"):
            file = Path(self.path)
            object.__setattr__(self, "path", str(file.parent))
            object.__setattr__(self, "gguf_file", file.name)

    def _take_trained(self) -> None:
        for name in ("revision", "gguf_file", "adapter", "adapter_revision"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name}={getattr(self, name)!r} has no effect: {self.path} says how it is loaded")
        try:
            found = trained.find(self.path)
        except UserError as error:
            raise ValueError(error) from error
        for name, value in found.items():
            if name != "dtype" or self.dtype == "auto":
                object.__setattr__(self, name, value)

    @classmethod
    def of(cls, value: Source | str | Path | Mapping[str, Any], key: str = "source") -> Source:
        """A Source from a path or from a mapping of its fields; `key` names it in errors."""
        return check(cls, value, key)

    @property
    def module(self) -> Source:
        """The source of the module itself: sources with equal modules share it in memory."""
        path = str(Path(self.path).expanduser().resolve()) if is_local(self.path) else self.path
        return replace(self, path=path, adapter=None, adapter_revision=None, chat=None)


def _source_or_endpoint(value: Any, source: ValidatorFunctionWrapHandler) -> Any:
    if isinstance(value, Mapping) and "api" in value:
        return Endpoint.of(value)
    return value if isinstance(value, Endpoint) else source(value)


if TYPE_CHECKING:
    Base = Source | Endpoint
else:
    Base = Annotated[Source, WrapValidator(_source_or_endpoint)]


@strict_dataclass("models")
class FamilySpec:
    """A mapping of a family's members by role: a large base, a small antiexpert, experts tuned from it, tuned large
    models."""

    base: Base
    """a path or a mapping of `Source` fields: the large model; or a mapping of `Endpoint` fields (`api`, `model`,
    `top_logprobs`): one behind an OpenAI-compatible endpoint"""
    antiexpert: Source | None = None
    """a path or a mapping of `Source` fields: the small untuned model that every expert was tuned from. Needed as soon
    as there are experts."""
    experts: Mapping[Name, Source] = field(default_factory=dict)
    """a mapping of names to sources: small tuned models"""
    tuned: Mapping[Name, Source] = field(default_factory=dict)
    """a mapping of names to sources: large models tuned directly, the upper bounds"""
    missing_tokens: MissingTokens = "refuse"
    """refuse or base_only: what to do where members know different tokens. See
    `proxytune.models.vocabulary.MissingTokens`."""
    end_tokens: Annotated[tuple[str, ...], Field(strict=False)] | None = None
    """a list of tokens like "</s>" that end an answer, or null: all that end it for a member. See `Ensemble.ends`."""
    data_dir: PathText | None = None
    """a folder of task data that belongs to the family (the miniature brings its own)"""

    def __post_init__(self) -> None:
        if self.experts and self.antiexpert is None:
            raise ValueError("the family has experts but no antiexpert: give the small model they were tuned from")
        if isinstance(self.base, Endpoint) and self.base.tokenizer is None and self.antiexpert is None:
            raise ValueError(
                "base is behind an endpoint: give base.tokenizer, or an antiexpert, whose tokenizer is used"
            )

    @classmethod
    def of(cls, value: FamilySpec | Mapping[str, Any], key: str = "models") -> FamilySpec:
        """A FamilySpec from a mapping of its fields, optionally with Hydra's `_target_`; `key` names it in errors."""
        if isinstance(value, Mapping):
            value = {name: part for name, part in value.items() if name != "_target_"}
        return check(cls, value, key)

    @property
    def vocabulary(self) -> Source:
        """The source of the family's tokenizer."""
        if isinstance(self.base, Source):
            return self.base
        if self.base.tokenizer is not None:
            return Source(self.base.tokenizer)
        assert self.antiexpert is not None
        return self.antiexpert

    def weights(self, role: str) -> Source:
        """The source of `role`; raises UserError for a model behind an endpoint, whose weights are not available."""
        source = self.sources[role]
        if isinstance(source, Endpoint):
            raise UserError(f"{role}: {source.model} is behind {source.api}, and this needs its weights: give a path")
        return source

    @property
    def sources(self) -> dict[str, Base]:
        """Every source by role: "base", "antiexpert", "expert:<name>", "tuned:<name>"."""
        roles: dict[str, Base] = {"base": self.base}
        if self.antiexpert is not None:
            roles["antiexpert"] = self.antiexpert
        roles |= {f"expert:{name}": source for name, source in self.experts.items()}
        return roles | {f"tuned:{name}": source for name, source in self.tuned.items()}


def is_local(path: str) -> bool:
    """Whether `path` means a local folder or file: it exists, or it cannot be a hub id."""
    expanded = Path(path).expanduser()
    return expanded.exists() or path.startswith((".", "~")) or expanded.is_absolute() or path.count("/") > 1
