"""`proxytune score`: the metrics of outputs that were generated elsewhere, in full digits.

Rows that repeat a question are scored like all others; the line repeated_questions says how many there are.
"""

from __future__ import annotations

from collections.abc import Sequence

from proxytune.cli.arguments import key_values, usage, wants_help

KEYS = {
    "task": "the task's name (gsm8k, truthfulqa_mc)",
    "style": "the paper whose metric is used (liu2024, fan2024); leave out where the task's name says it all",
    "outputs": "a JSON-lines file, one item a row, the generated text as `output`",
}
NEEDED = ("task", "outputs")


def main(arguments: Sequence[str]) -> int:
    """`proxytune score task=... [style=...] outputs=FILE`; prints one `name value` line per count and metric."""
    if wants_help(arguments):
        print(usage("score", str(__doc__), KEYS, NEEDED))
        return 0
    given = key_values("score", arguments, KEYS, NEEDED)
    from proxytune.tasks.outputs import score_outputs

    result = score_outputs(given["task"], given.get("style"), given["outputs"])
    width = max(map(len, result))
    for name, value in result.items():
        print(f"{name:<{width}}  {value}")
    return 0
