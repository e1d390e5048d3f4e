"""The one way to check a user's values: each field declares its type and bounds, and an error quotes its docstring.

Nothing is converted: "no" is not false and true is not 1, but a whole number is a float too. NaN and infinity are
refused. An error is one line with the full key, the value given, what is allowed, and the nearest name for a wrong one.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, dataclass_transform, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

from proxytune.errors import UserError, unknown_name

T = TypeVar("T")
FilePath = Annotated[str, Field(pattern=r"^[^\x00]+$")]
"""Any text that can name a file."""
Count = Annotated[int, Field(ge=1)]
FromZero = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)
_UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")


class Strict(BaseModel):
    """A part of a configuration. A field's docstring begins with what it may be: an error quotes its first sentence."""

    model_config = ConfigDict(frozen=True, **_STRICT)


@dataclass_transform(frozen_default=True, field_specifiers=(Field, dataclasses.field))
def strict_dataclass(key: str) -> Callable[[type[T]], type[T]]:
    """A frozen dataclass that is checked like `Strict`; a field that holds another one takes a mapping as well.

    Its constructor raises UserError, with `key` before the names of fields. What `__post_init__` and validators have to
    say they raise as ValueError.
    """

    def decorate(cls: type[T]) -> type[T]:
        setattr(cls, "__get_pydantic_core_schema__", classmethod(_accept_mappings))  # noqa: B010
        checked: Any = dataclass(cls, frozen=True, config=_STRICT)
        construct = checked.__init__

        @functools.wraps(construct)
        def __init__(self: T, *args: Any, **kwargs: Any) -> None:
            try:
                construct(self, *args, **kwargs)
            except ValidationError as error:
                raise explain(error, checked, key) from error

        checked.__init__ = __init__
        return checked

    return decorate


def check(kind: type[T], values: Any, key: str = "") -> T:
    """`values` as a `kind`, whose place in the configuration is `key`; raises UserError for the first fault."""
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise explain(error, kind, key) from error


def explain(error: ValidationError, kind: type, key: str = "") -> UserError:
    """One line for the first fault that pydantic found in a `kind`; unknown keys come before all others."""
    fault = min(error.errors(include_url=False), key=lambda fault: fault["type"] not in _UNKNOWN_KEY)
    place = _find(kind, fault["loc"])
    path = ".".join([key] * bool(key) + place.path)
    if fault["type"] in _UNKNOWN_KEY:
        group = path.removesuffix(place.path[-1])
        return unknown_name("key", path, [group + name for name in place.siblings])
    if fault["type"] == "value_error":
        return UserError(f"{path}: {fault['ctx']['error']}")
    allowed = f"is {place.allowed}" if place.allowed else fault["msg"].removeprefix("Input ")
    if fault["type"] == "missing":
        return UserError(f"{path} is missing: it {allowed}")
    near = difflib.get_close_matches(str(fault["input"]), place.choices, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return UserError(f"{path}={shown(fault['input'])} is not allowed: it {allowed}{hint}")


def shown(value: object) -> str:
    """A value for a message, as a configuration would have it."""
    return short("null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value))


def short(text: str, width: int = 60) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


class _Place(NamedTuple):
    """Where a fault is."""

    path: list[str]
    siblings: Iterable[str]
    """The keys that are known there."""
    allowed: str
    """What the value may be; empty: not documented."""
    choices: list[str]
    """The values that it may have, where they are listed."""


def _find(kind: Any, location: Iterable[int | str]) -> _Place:
    """Follows pydantic's location as far as fields and entries go; behind them it names branches of unions."""
    path: list[str] = []
    fields: Mapping[str, FieldInfo] = {}
    allowed = _summary(kind)
    keys: list[Any] = []
    for part in location:
        if part == "[key]":
            kind, allowed = keys[0], ""
            break
        kind = _plain(kind)
        if known := _fields(kind):
            fields = known
            name = list(known)[part] if isinstance(part, int) else part  # of a positional argument
            field = known.get(name)
            kind = field.annotation if field else None
            allowed = (_first_sentence(field.description) or _summary(kind)) if field else ""
        elif get_origin(kind) in (dict, list, Mapping):
            name = str(part)
            *keys, kind = get_args(kind)
            allowed = _summary(kind) or allowed
        else:
            break
        path.append(name)
    literals = (one for one in (kind, *get_args(kind)) if get_origin(one) is Literal)
    choices = [str(choice) for literal in literals for choice in get_args(literal)]
    return _Place(path, fields, allowed, choices)


def _fields(kind: Any) -> dict[str, FieldInfo]:
    """The fields of a `Strict` or of a strict dataclass, by the names that a user gives them."""
    fields = getattr(kind, "__pydantic_fields__", {})
    return {field.alias or name: field for name, field in fields.items()}


def _plain(kind: Any) -> Any:
    """A type without its annotations: X of Annotated[X, ...] and of X | None."""
    if get_origin(kind) is Annotated:
        return _plain(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        others = [one for one in get_args(kind) if one is not types.NoneType]
        return _plain(others[0]) if len(others) == 1 else kind
    return kind


def _summary(kind: Any) -> str:
    """What a part of a configuration is, by the first sentence of its class; empty: a plain type."""
    summary = _first_sentence(_plain(kind).__doc__) if _fields(_plain(kind)) else ""
    return summary[:1].lower() + summary[1:]


def _first_sentence(text: str | None) -> str:
    return " ".join((text or "").split()).partition(". ")[0].removesuffix(".")


def _accept_mappings(cls: type, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
    """By itself a strict dataclass only takes instances. Its fields stay strict."""
    schema = handler(source)
    itself: Any = handler.resolve_ref_schema(schema)
    itself["strict"] = False
    return core_schema.no_info_before_validator_function(_as_dict, schema)


def _as_dict(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value
