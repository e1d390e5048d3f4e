"""The page: templates, style and script put together in one file that refers to nothing outside itself."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from proxytune.atomic import write_text
from proxytune.reporting.columns import Notes
from proxytune.reporting.report.figures import figures
from proxytune.reporting.report.samples import samples
from proxytune.reporting.report.source import Run
from proxytune.reporting.report.text import as_json, packed, visible
from proxytune.reporting.report.tokens import token_parts
from proxytune.reporting.report.view import (
    View,
    comparisons,
    configurations,
    cost_table,
    names_of,
    paired,
    parameters_of,
    source_of,
)
from proxytune.reporting.speeds import speeds
from proxytune.reporting.sweep import summary_of
from proxytune.reporting.tables import LEGEND, tabulate

PARTS = Path(__file__).parent / "parts"
SCRIPTS = ("text.js", "samples.js", "tokens.js", "item.js", "browser.js", "figures.js", "theme.js")
"""In this order one script; they share their names."""


def write_report(runs: Sequence[Run], path: str | Path) -> None:
    """Writes the page of `runs` (at least one), complete or not at all; raises UserError if it cannot."""
    write_text(Path(path), page(runs))


def page(runs: Sequence[Run]) -> str:
    """The page as text."""
    names = names_of(runs)
    content = _samples(runs, names) | _comparisons(runs, names) | _assets()
    content |= {"figures": figures(runs, names), "legend": LEGEND}
    views = [View(run, name) for run, name in zip(runs, names, strict=True)]
    return _environment().get_template("page.html").render(runs=views, **content)


def _samples(runs: Sequence[Run], names: Sequence[str]) -> dict[str, object]:
    """The samples, and what the page's script must know of them."""
    tasks = samples(runs)
    traces = [token_parts(task, runs) for task in tasks]
    heads = [task.head() | {"traced": bool(parts)} for task, parts in zip(tasks, traces, strict=True)]
    return {
        "tasks": tasks,
        "arms": list(dict.fromkeys(arm for task in tasks for _, arm in task.arms)),
        "heads": as_json({"runs": names, "tasks": heads}),
        "blocks": [packed(task.items) for task in tasks],
        "traces": [[packed(part) for part in parts] for parts in traces],
    }


def _comparisons(runs: Sequence[Run], names: Sequence[str]) -> dict[str, object]:
    """What there is to say of several runs together."""
    notes = Notes()
    tables = comparisons(runs, names, notes) if len(runs) > 1 else []
    folders = {run.folder.resolve().parent for run in runs}
    return {
        "sweep": summary_of(folders.pop(), runs[0].config.get("headline")) if len(folders) == 1 else None,
        "configurations": configurations(runs),
        "comparisons": tables,
        "comparison_notes": notes.texts,
    }


def _assets() -> dict[str, object]:
    """The style and the script, and the hashes with which the page's security policy allows only these two."""
    script = "".join((PARTS / name).read_text(encoding="utf-8") for name in SCRIPTS)
    style = (PARTS / "style.css").read_text(encoding="utf-8")
    return {
        "script": Markup(script),
        "script_hash": _hash(script),
        "style": Markup(style),
        "style_hash": _hash(style),
    }


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(PARTS),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        {one.__name__: one for one in (tabulate, paired, cost_table, speeds, parameters_of, source_of)}
    )
    return environment
