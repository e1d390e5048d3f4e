"""One line for each mistake: full key, value, what is allowed, nearest name. Nothing is converted."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import field, replace
from typing import Any, Literal

import pytest
from pydantic import Field

from proxytune.errors import UserError
from proxytune.validation import Strict, check, shown, strict_dataclass


@strict_dataclass("part")
class Part:
    """A part: what stands inside. Not quoted."""

    count: int = Field(ge=1)
    """an integer from 1. Not quoted."""
    kind: Literal["plain", "fancy"] = "plain"
    """plain or
    fancy"""
    share: float = 0.5
    on: bool = False
    options: Mapping[str, Any] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        if self.count == 13:
            raise ValueError("count=13 brings bad luck")


class Whole(Strict):
    """A whole."""

    part: Part | None = None
    parts: dict[str, Part] = Field({})
    """a mapping of names to parts"""
    names: list[str] = Field([])
    """a list of names"""
    either: Literal["all"] | list[str] = Field("all", alias="except")
    """all, or a list of names"""


def test_what_is_right_is_taken_as_it_is() -> None:
    whole = check(Whole, {"part": {"count": 2, "share": 1}, "parts": {"a": Part(3)}, "except": ["b"]})
    assert whole.part == Part(2, share=1.0)
    assert whole.parts == {"a": Part(3)}
    assert isinstance(whole.part.share, float)
    assert whole.either == ["b"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prats": {}}, "unknown key 'prats'. Did you mean 'parts'? Known: except, names, part, parts"),
        ({"part": {"cuont": 1}}, "unknown key 'part.cuont'. Did you mean 'part.count'? "),
        ({"part": {}}, "part.count is missing: it is an integer from 1"),
        ({"part": {"count": 0}}, "part.count=0 is not allowed: it is an integer from 1"),
        ({"part": {"count": True}}, "part.count=true is not allowed: it is an integer from 1"),
        ({"part": {"count": 1.0}}, "part.count=1.0 is not allowed: it is an integer from 1"),
        ({"part": {"count": "1"}}, "part.count='1' is not allowed: it is an integer from 1"),
        ({"part": {"count": None}}, "part.count=null is not allowed: it is an integer from 1"),
        ({"part": {"count": 1, "on": "no"}}, "part.on='no' is not allowed: it should be a valid boolean"),
        ({"part": {"count": 1, "share": float("nan")}}, "part.share=nan is not allowed: it should be a finite number"),
        ({"part": {"count": 1, "share": True}}, "part.share=true is not allowed: it should be a valid number"),
        (
            {"part": {"count": 1, "kind": "fanzy"}},
            "part.kind='fanzy' is not allowed: it is plain or fancy; did you mean fancy?",
        ),
        ({"part": {"count": 13}}, "part: count=13 brings bad luck"),
        ({"part": 3}, "part=3 is not allowed: it is a part: what stands inside"),
        ({"parts": {"a": {"count": 0}}}, "parts.a.count=0 is not allowed: it is an integer from 1"),
        ({"parts": {"a": "b"}}, "parts.a='b' is not allowed: it is a part: what stands inside"),
        ({"parts": []}, "parts=[] is not allowed: it is a mapping of names to parts"),
        ({"names": [1]}, "names.0=1 is not allowed: it is a list of names"),
        ({"except": ["a", 1]}, "except=['a', 1] is not allowed: it is all, or a list of names"),
        (3, "=3 is not allowed: it is a whole"),
    ],
)
def test_a_mistake_is_one_line(values: Any, message: str) -> None:
    for key in ("", "here"):
        with pytest.raises(UserError) as error:
            check(Whole, values, key)
        text = str(error.value)
        assert "\n" not in text
        if not key:
            assert text.startswith(message)
        elif not message.startswith("unknown"):
            assert text.startswith(key + ("." * (message[0] != "=")) + message)


def test_a_constructor_says_the_same() -> None:
    with pytest.raises(UserError, match=r"^part\.count=0 is not allowed: it is an integer from 1$"):
        Part(0)
    with pytest.raises(UserError, match=r"^part\.count='x' is not allowed: it is an integer from 1$"):
        Part(count="x")
    with pytest.raises(UserError, match=r"^unknown key 'part\.cuont'"):
        Part(cuont=1)


def test_it_is_a_plain_frozen_dataclass() -> None:
    part = Part(2, options={"a": 1})
    assert hash(part) == hash(Part(2))
    assert part != Part(2)
    assert pickle.loads(pickle.dumps(part)) == part
    assert replace(part, count=3) == Part(3, options={"a": 1})
    with pytest.raises(UserError, match=r"part\.count=-1"):
        replace(part, count=-1)
    with pytest.raises(AttributeError):
        part.count = 3


@pytest.mark.parametrize(("value", "text"), [(None, "null"), (True, "true"), (0, "0"), ("", "''"), ("a\nb", r"'a\nb'")])
def test_values_are_shown_as_a_configuration_has_them(value: object, text: str) -> None:
    assert shown(value) == text


def test_long_values_are_cut() -> None:
    assert len(shown("x" * 100)) == 60
