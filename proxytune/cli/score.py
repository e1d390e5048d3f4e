"""`proxytune score`: the metrics of outputs that were generated elsewhere, in full digits.

Rows that repeat a question are scored like all others; the line repeated_questions says how many there are.
"""

from __future__ import annotations

from collections.abc import Sequence

from proxytune.cli.arguments import once
from proxytune.errors import UserError

KEYS = {
    "task": "the task's name (gsm8k, truthfulqa_mc)",
    "style": "the paper whose metric is used (liu2024, fan2024); leave out where the task's name says it all",
    "outputs": "a JSON-lines file, one item a row, the generated text as `output`",
}


def main(arguments: Sequence[str]) -> int:
    """`proxytune score task=... [style=...] outputs=FILE`; prints one `name value` line per count and metric."""
    if any(argument in ("-h", "--help") for argument in arguments):
        print(_help())
        return 0
    given = _parse(arguments)
    from proxytune.tasks.outputs import score_outputs

    result = score_outputs(given["task"], given.get("style"), given["outputs"])
    width = max(map(len, result))
    for name, value in result.items():
        print(f"{name:<{width}}  {value}")
    return 0


def _parse(arguments: Sequence[str]) -> dict[str, str]:
    given = once(arguments, KEYS, "score")
    for key in ("task", "outputs"):
        if key not in given:
            raise UserError(f"{key}=... is missing: {KEYS[key]}")
    return given


def _help() -> str:
    listing = "\n".join(f"  {key:<8} {meaning}" for key, meaning in KEYS.items())
    return f"usage: proxytune score task=TASK [style=STYLE] outputs=FILE\n\n{__doc__}\n\n{listing}"
