"""`proxytune figures`: the figures of runs as files; a paper's own points beside ours where they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from proxytune.cli.arguments import key_values, wants_help
from proxytune.errors import UserError

KEYS = {
    "format": "svg (default), png or pdf",
    "paper": "liu2024 or fan2024: also its tables as figures, its points beside those of runs of its experiments",
    "columns": "panels side by side; default: 2",
    "output": "the folder to write into; default: figures in the one RUN that is given, or, of several, in this folder",
}


def main(arguments: Sequence[str]) -> int:
    """`proxytune figures RUN... [format=...] ...`; raises UserError for the user's mistakes."""
    if wants_help(arguments):
        print(_usage())
        return 0
    runs = [argument for argument in arguments if "=" not in argument or Path(argument).exists()]
    given = key_values("figures", [argument for argument in arguments if argument not in runs], KEYS)
    if not runs:
        raise UserError("proxytune figures: no run is given; give the folders of one or several runs")
    columns = _columns(given.get("columns", "2"))

    from proxytune.reporting.charts import charts
    from proxytune.reporting.drawing import write_figures
    from proxytune.reporting.frames import frames
    from proxytune.reporting.papers import paper_charts, paper_tables
    from proxytune.reporting.papers.shift import shift_charts
    from proxytune.reporting.report import find_runs

    folders = [run.folder for run in find_runs(runs)]
    read = [frames(folder) for folder in folders]
    made = charts(read, columns)
    if "paper" in given:
        made |= paper_charts(paper_tables(given["paper"], folders), columns)
    if given.get("paper") == "liu2024":
        made |= shift_charts(read, columns)
    for path in write_figures(made, Path(given.get("output", _beside(runs))), given.get("format", "svg")):
        print(path)
    return 0


def _usage() -> str:
    listing = "\n".join(f"  {key:<8} {meaning}" for key, meaning in KEYS.items())
    keys = " ".join(f"[{key}=...]" for key in KEYS)
    listing = f"  RUN      the folder of a run or of a sweep\n{listing}"
    return f"usage: proxytune figures RUN... {keys}\n\n{__doc__}\n\n{listing}"


def _columns(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"columns={text} is not allowed: it is an integer from 1")
    return int(text)


def _beside(runs: Sequence[str]) -> Path:
    """The default folder."""
    path = Path(runs[0])
    return Path("figures") if len(runs) > 1 else (path if path.is_dir() else path.parent) / "figures"
