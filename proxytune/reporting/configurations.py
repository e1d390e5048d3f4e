"""The command lines and configurations of runs, and what differs between them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from proxytune.errors import UserError

ABSENT = "–"
DECIDE_NOTHING = {
    *("hydra", "output", "store", "allow_targets", "headline", "tags", "note", "logger", "report"),
    *("trace", "trace_items", "trace_missing", "pilot"),
}
"""Keys of a configuration that change no answer and no score: where files are, what a run is called, what is kept."""
Kind = TypeVar("Kind", dict[str, Any], list[Any])


def hydra_notes(folder: Path, name: str, kind: type[Kind]) -> Kind:
    """What Hydra noted in the run's `.hydra/<name>.yaml`; empty without such a file.

    Raises UserError for a file that cannot be read, or holds something else than a `kind`.
    """
    path = folder / ".hydra" / f"{name}.yaml"
    try:
        noted = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return kind()
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    if not isinstance(noted, kind):
        raise UserError(f"cannot read {path}: it is not a {'list' if kind is list else 'mapping'}")
    return noted


def overrides_of(folder: Path) -> list[str]:
    """The run's command line; empty for a run that no command line began. Raises UserError as `hydra_notes` does."""
    return [str(override) for override in hydra_notes(folder, "overrides", list)]


def by_key(overrides: Sequence[str]) -> dict[str, str]:
    """Key -> value; a key that was taken away (~key) has no value."""
    return {key.lstrip("+"): value for key, _, value in (override.partition("=") for override in overrides)}


def swept_keys(given: Sequence[Mapping[str, str]]) -> list[str]:
    """The keys whose values differ between the command lines of runs."""
    keys = dict.fromkeys(key for one in given for key in one)
    return [key for key in keys if len({one.get(key) for one in given}) > 1]


def deciding(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a configuration that decides the results."""
    return {key: value for key, value in config.items() if key not in DECIDE_NOTHING}


def flattened(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a configuration, each under its full key (`arms.proxy.rule.weights`)."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differing(configurations: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Full key -> its value in each configuration, for the keys that decide results and are not the same everywhere.

    Texts are as they are, other values as JSON; "–" where a configuration has no such key.
    """
    flat = [dict(flattened(deciding(one))) for one in configurations]
    keys = dict.fromkeys(key for one in flat for key in one)
    coded = {key: {json.dumps(one[key]) if key in one else ABSENT for one in flat} for key in keys}
    return {key: [_text(one, key) for one in flat] for key in keys if len(coded[key]) > 1}


def _text(values: Mapping[str, object], key: str) -> str:
    value = values.get(key, ABSENT)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
