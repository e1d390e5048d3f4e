"""What the columns of a data file hold. Every row is checked as it is read, so that an error names its line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, ValidationError, create_model

from proxytune.errors import UserError, unknown_name


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("a text without halves of characters (lone surrogates)") from None
    return text


def _filled(text: str) -> str:
    if not text.strip():
        raise ValueError("a text that is not blank")
    return text


Text = Annotated[str, AfterValidator(_encodable)]
Filled = Annotated[Text, AfterValidator(_filled)]
Texts = Annotated[list[Filled], Field(min_length=1)]


class Row(BaseModel):
    """No value is converted, and columns that the task does not read are left out."""

    model_config = ConfigDict(strict=True, extra="ignore")


class Aliases(Row):
    """An answer under all its names."""

    aliases: Texts


class Answer(Aliases):
    value: Text


class Targets(Row):
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


def _with_number(solution: str) -> str:
    if not any(character.isdigit() for character in solution.rpartition("####")[2]):
        raise ValueError("a number after ####, or alone")
    return solution


TrueFirst = Annotated[Targets, AfterValidator(_true_first)]
KINDS: dict[str, Any] = {
    "text": Text,
    "texts": Texts,
    "four texts": Annotated[list[Filled], Field(min_length=4, max_length=4)],
    "letter": Literal["A", "B", "C", "D"],
    "solution": Annotated[Text, AfterValidator(_with_number)],
    "answer": Answer,
    "aliases": Aliases,
    "targets": TrueFirst,
    "one true target": Annotated[TrueFirst, AfterValidator(_one_true)],
}
"""What a task's YAML may say of a column; besides, `index of <column>` counts from 0 within a list of the same row."""
_INDEX = "index of "
_EXPECTED = {"model_type": "a JSON object", "missing": "an object that has it"}
"""Pydantic's kinds of fault, where its own words are about Python."""


class Columns:
    """The columns that a task reads, by name, each of one of `KINDS`."""

    def __init__(self, kinds: Mapping[str, str], published: Mapping[str, str] | None = None) -> None:
        """`published` gives other names, under which files published with a paper have a column."""
        self._row = _row_of(tuple(kinds.items()), tuple((published or {}).items()))
        self._lists = {name: kind.removeprefix(_INDEX) for name, kind in kinds.items() if kind.startswith(_INDEX)}

    def of(self, row: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The columns of `row`; raises a UserError that begins with `where` for one that is not as it must be."""
        try:
            # null is no value
            values = self._row.model_validate({k: v for k, v in row.items() if v is not None}).model_dump()
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            expected = _EXPECTED.get(first["type"], first["msg"])
            raise self._misfit(row, where, first["loc"], first["input"], expected) from None
        for name, column in self._lists.items():
            if values[name] >= len(values[column]):
                expected = f"less than {len(values[column])}, as an {_INDEX}{column}"
                raise self._misfit(row, where, (name,), values[name], expected)
        return values

    def _misfit(
        self, row: Mapping[str, Any], where: str, place: tuple[int | str, ...], value: object, expected: str
    ) -> UserError:
        alias = self._row.model_fields[str(place[0])].validation_alias
        assert isinstance(alias, AliasChoices)
        names = [str(name) for name in alias.choices]
        given = next((name for name in names if row.get(name) is not None), None)
        if given is None:
            return UserError(f"{where} has no {' or '.join(map(repr, names))}; it has {listing(row)}.")
        key = ".".join(map(str, (given, *place[1:])))
        expected = expected.removeprefix("Value error, ").removeprefix("Input should be ")
        return UserError(f"{where}: {key} = {short(repr(value))} is not allowed; expected: {expected}.")


@cache
def _row_of(kinds: tuple[tuple[str, str], ...], published: tuple[tuple[str, str], ...]) -> type[Row]:
    others = dict(published)
    fields: dict[str, Any] = {}
    for name, kind in kinds:
        if kind not in KINDS and not kind.startswith(_INDEX):
            raise unknown_name(f"kind of column {name!r}", kind, KINDS)
        names = dict.fromkeys((name, others.get(name, name)))
        fields[name] = (KINDS.get(kind, Annotated[int, Field(ge=0)]), Field(validation_alias=AliasChoices(*names)))
    return create_model("Row", __base__=Row, **fields)


def listing(names: Iterable[str]) -> str:
    """The names of columns, quoted, for a message."""
    return short(", ".join(map(repr, names)) or "nothing", 200)


def short(text: str, width: int = 60) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."
