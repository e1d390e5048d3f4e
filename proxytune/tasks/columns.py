"""The columns of a data file. Every row is checked as it is read, so that an error names its line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, TypeAdapter, ValidationError

from proxytune.errors import UserError, unknown_name
from proxytune.validation import short, shown


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("a text without lone surrogates (halves of characters)") from None
    return text


def _filled(text: str) -> str:
    if not text.strip():
        raise ValueError("a text that is not blank")
    return text


def _with_number(solution: str) -> str:
    if not any(character.isdigit() for character in solution.rpartition("####")[2]):
        raise ValueError("a number after ####, or alone")
    return solution


Text = Annotated[str, AfterValidator(_encodable)]
Filled = Annotated[Text, AfterValidator(_filled)]
Texts = Annotated[list[Filled], Field(min_length=1)]


class Aliases(BaseModel):
    """An answer under all its names."""

    aliases: Texts


class NamedAnswer(Aliases):
    value: Text


class Targets(BaseModel):
    """Answers that are true (label 1) or false (0)."""

    choices: list[Filled]
    labels: list[Literal[0, 1]]


def _true_first(targets: Targets) -> Targets:
    if len(targets.choices) != len(targets.labels):
        raise ValueError(f"one label for each choice; there are {len(targets.choices)} and {len(targets.labels)}")
    if set(targets.labels) != {0, 1} or targets.labels != sorted(targets.labels, reverse=True):
        raise ValueError("labels of at least one true choice (1) and then of at least one false choice (0)")
    return targets


def _one_true(targets: Targets) -> Targets:
    if sum(targets.labels) != 1:
        raise ValueError("labels of one true choice")
    return targets


TrueFirst = Annotated[Targets, AfterValidator(_true_first)]
KINDS: dict[str, Any] = {
    "text": Text,
    "texts": Texts,
    "four texts": Annotated[list[Filled], Field(min_length=4, max_length=4)],
    "letter": Literal["A", "B", "C", "D"],
    "solution": Annotated[Text, AfterValidator(_with_number)],
    "answer": NamedAnswer,
    "aliases": Aliases,
    "targets": TrueFirst,
    "one true target": Annotated[TrueFirst, AfterValidator(_one_true)],
    "boolean": bool,
    "integer": int,
    "number of a choice": Annotated[list[Literal["0", "1", "2", "3"]], Field(min_length=1, max_length=1)],
    "0 or 1": Literal[0, 1],
    "0, 1 or 2": Literal[0, 1, 2],
}
"""The kinds of column that a YAML may name, besides `index of <column>`: from 0, within a list of the same row."""
_INDEX = "index of "
_ADAPTERS = {kind: TypeAdapter(of) for kind, of in KINDS.items()}
_AN_INDEX = TypeAdapter(Annotated[int, Field(ge=0)])
_EXPECTED = {"model_type": "a JSON object", "missing": "an object that has it"}
"""Pydantic's kinds of error whose own message is about Python."""


def check_kind(kind: str) -> str:
    """`kind`; raises ValueError for one that is unknown."""
    if kind not in KINDS and not kind.startswith(_INDEX):
        raise ValueError(f"{kind!r} is not a kind of column: {', '.join(KINDS)}, or {_INDEX}<column>")
    return kind


class Columns:
    """The columns that a task reads: their names, and the kind of each."""

    def __init__(self, kinds: Mapping[str, str], published: Mapping[str, str] | None = None) -> None:
        """`published` has the names that files published with a paper use instead.

        Raises UserError for the index of a column that is not there.
        """
        others = published or {}
        self._lists = {name: kind.removeprefix(_INDEX) for name, kind in kinds.items() if kind.startswith(_INDEX)}
        for name, column in self._lists.items():
            if column not in kinds:
                raise unknown_name(f"column ({name!r} is its index)", column, kinds)
        self._names = {name: tuple(dict.fromkeys((name, others.get(name, name)))) for name in kinds}
        self._kinds = {name: _ADAPTERS.get(kind, _AN_INDEX) for name, kind in kinds.items()}

    def of(self, row: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The columns of `row`; no value is converted, and null counts as missing.

        Raises UserError, beginning with `where`, for a column that is missing or of another kind.
        """
        values = {name: self._value(name, row, where) for name in self._kinds}
        for name, column in self._lists.items():
            if values[name] >= len(values[column]):
                expected = f"less than {len(values[column])}, as an {_INDEX}{column}"
                raise _misfit(where, name, values[name], expected)
        return values

    def _value(self, name: str, row: Mapping[str, Any], where: str) -> Any:
        given = next((key for key in self._names[name] if row.get(key) is not None), None)
        if given is None:
            names = " or ".join(map(repr, self._names[name]))
            raise UserError(f"{where} has no {names}; it has {_listing(row)}")
        kind = self._kinds[name]
        try:
            return kind.dump_python(kind.validate_python(row[given], strict=True))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            expected = _EXPECTED.get(first["type"], first["msg"])
            raise _misfit(where, ".".join(map(str, (given, *first["loc"]))), first["input"], expected) from None


def _misfit(where: str, key: str, value: object, expected: str) -> UserError:
    expected = expected.removeprefix("Value error, ").removeprefix("Input should be ")
    return UserError(f"{where}: {key} = {shown(value)} is not allowed; expected: {expected}")


def _listing(names: Iterable[str]) -> str:
    return short(", ".join(map(repr, names)) or "nothing", 200)
