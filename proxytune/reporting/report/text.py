"""Texts of a run inside a page: shown, never run."""

from __future__ import annotations

import base64
import gzip
import json
import re
from typing import Any

from markupsafe import Markup

_UNSEEN = re.compile(
    "[^\n\t -~\u00a0-\U0010ffff]|[\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff]"
)
"""Controls, marks of direction, characters of no width, and halves of characters."""


def visible(value: Any) -> Any:
    """A text with each unseen character named, as ⟨U+202E⟩; what is no text, or is markup already, as it is."""
    return value if not isinstance(value, str) or isinstance(value, Markup) else _UNSEEN.sub(_named, value)


def _named(character: re.Match[str]) -> str:
    return f"⟨U+{ord(character[0]):04X}⟩"


def as_json(value: object) -> Markup:
    """JSON for a script element: ASCII without `<`, so that nothing in it can end the element."""
    return Markup(json.dumps(value).replace("<", "\\u003c"))


def packed(value: object) -> Markup:
    """JSON, gzipped, in base64: a page cannot run it, and no character of it can end an element."""
    text = json.dumps(value, separators=(",", ":"))
    return Markup(base64.b64encode(gzip.compress(text.encode("ascii"), 6, mtime=0)).decode("ascii"))
