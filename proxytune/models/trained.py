"""Finding trained models by the hash of their recipe: `trained:<hash>` in place of a source's path.

`$PROXYTUNE_CACHE/trained/<hash>.json` says in which folder the model is and how it is loaded; an adapter needs the
model that it was trained over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from proxytune.atomic import atomic_write
from proxytune.errors import UserError, unknown_name
from proxytune.folders import cache_root

PREFIX = "trained:"


def remember(recipe: str, folder: Path, source: Mapping[str, str]) -> None:
    """Records that `folder` holds the model of the recipe with this hash; `source` has the fields of its `Source`."""
    with atomic_write(_notes() / f"{recipe}.json") as file:
        file.write(json.dumps({"folder": str(folder.resolve()), "source": dict(source)}, indent=2) + "\n")


def find(name: str) -> dict[str, str]:
    """The fields of the `Source` called `trained:<hash>`; a unique prefix of the hash is enough.

    Raises UserError for an unknown or ambiguous hash, and for a folder that was moved or trained again.
    """
    wanted = name.removeprefix(PREFIX)
    hashes = sorted(note.stem for note in _notes().glob("*.json"))
    found = [one for one in hashes if wanted and one.startswith(wanted)]
    if not found:
        raise unknown_name("trained model", wanted, hashes)
    if len(found) > 1:
        raise UserError(f"{name} is ambiguous: {', '.join(found)} begin so; give more of the hash")
    note = _notes() / f"{found[0]}.json"
    try:
        noted = json.loads(note.read_text(encoding="utf-8"))
        folder, source = Path(noted["folder"]), dict(noted["source"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{note} is damaged: remove it, and give the model's folder as path") from error
    if _recipe_in(folder) != found[0]:
        raise UserError(f"{name} was in {folder}, which holds it no longer: give the folder where it is now as path")
    return source


def _notes() -> Path:
    return cache_root() / "trained"


def _recipe_in(folder: Path) -> str | None:
    try:
        return json.loads((folder / "recipe.json").read_text(encoding="utf-8"))["recipe"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
