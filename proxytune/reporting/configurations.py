"""What differs between the configurations of runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from proxytune.record import deciding, flattened

ABSENT = "–"


def differing(configurations: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Full key -> its value in each configuration, for the keys that decide results and are not the same everywhere.

    Texts are as they are, other values as JSON; "–" where a configuration has no such key.
    """
    flat = [dict(flattened(deciding(one))) for one in configurations]
    keys = dict.fromkeys(key for one in flat for key in one)
    coded = {key: {json.dumps(one[key]) if key in one else ABSENT for one in flat} for key in keys}
    return {key: [_text(one, key) for one in flat] for key in keys if len(coded[key]) > 1}


def _text(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key, ABSENT)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
