"""The page: templates, style and script put together to one file that refers to nothing outside itself."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from proxytune.atomic import atomic_write
from proxytune.reporting.columns import Notes
from proxytune.reporting.report import differences
from proxytune.reporting.report.samples import packed, samples
from proxytune.reporting.report.source import Run
from proxytune.reporting.report.view import View, parameters, source
from proxytune.reporting.tables import LEGEND

PARTS = Path(__file__).parent / "parts"
SCRIPTS = ("text.js", "samples.js", "tokens.js", "item.js", "browser.js", "theme.js")
"""In this order one script; they share their names."""
_UNSEEN = re.compile(r"[^\n\t -~\u00a0-\U0010ffff]|[\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")


def write_report(runs: Sequence[Run], path: str | Path) -> None:
    """Writes the page of `runs` (at least one), complete or not at all; raises UserError if it cannot."""
    with atomic_write(Path(path)) as file:
        file.write(page(runs))


def page(runs: Sequence[Run]) -> str:
    names = differences.names(runs)
    tasks = samples(runs)
    notes = Notes()
    comparisons = differences.comparisons(runs, names, notes) if len(runs) > 1 else []
    script = "".join((PARTS / name).read_text(encoding="utf-8") for name in SCRIPTS)
    heads = {"runs": names, "tasks": [task.head() for task in tasks]}
    return (
        _environment()
        .get_template("page.html")
        .render(
            runs=[View(run, name) for run, name in zip(runs, names, strict=True)],
            configurations=differences.configurations(runs),
            comparisons=comparisons,
            comparison_notes=notes.texts,
            legend=LEGEND,
            parameters=parameters,
            source=source,
            figures=[],
            traced=False,
            traces={},
            tasks=tasks,
            arms=list(dict.fromkeys(arm for task in tasks for _, arm in task.arms)),
            heads=_json(heads),
            blocks=[Markup(packed(task.items)) for task in tasks],
            style=Markup((PARTS / "style.css").read_text(encoding="utf-8")),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii"),
        )
    )


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(PARTS),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _visible(value: Any) -> Any:
    """A text with its unseen characters (controls, marks of direction, zero width, halves of surrogates) named."""
    return value if not isinstance(value, str) or isinstance(value, Markup) else _UNSEEN.sub(_named, value)


def _named(character: re.Match[str]) -> str:
    return f"⟨U+{ord(character[0]):04X}⟩"


def _json(value: object) -> Markup:
    """JSON for a script element: ASCII without `<`, so that nothing in it can end the element."""
    return Markup(json.dumps(value).replace("<", "\\u003c"))
