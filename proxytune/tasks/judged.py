"""Tasks whose outputs other models judge: ToxiGen, TruthfulQA's open answers, AlpacaFarm."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, ClassVar

from lm_eval.api.task import ConfigurableTask

from proxytune.errors import UserError
from proxytune.tasks.classifier import Classifier
from proxytune.tasks.judges import NO_JUDGES, Judges, Pair
from proxytune.tasks.metrics import mean_of_valid
from proxytune.tasks.verdicts import WON


class Judged(ConfigurableTask):
    """An lm-eval task whose metrics come from verdicts, each asked for once: a run scores its answers as they come in,
    and again at the end."""

    kind: ClassVar[str]
    """The field of `Judges` that has the task's judge."""
    needs: ClassVar[str]
    """What to give where it has none."""

    def __init__(self, config: dict[str, Any]) -> None:
        own = {key: value for key, value in config.items() if key != "class"}
        # Not the method itself: lm-eval copies a task's configuration, and with a method its task and its judge.
        super().__init__(config=own | {"process_results": lambda doc, results: self.score_output(doc, results)})
        self.judge: Any = None
        self._verdicts: dict[Hashable, Any] = {}

    def take(self, judges: Judges) -> None:
        """The task's judge is among `judges`. Raises UserError where none is named."""
        self.judge = getattr(judges, self.kind)
        if self.judge is None:
            raise UserError(f"task {self.task_name!r} needs {self.needs}")

    def case(self, doc: Mapping[str, Any], output: str) -> Hashable:
        """What the judge sees of an item."""
        raise NotImplementedError

    def verdicts(self, cases: Sequence[Any]) -> Sequence[Any]:
        """The judge's verdict on each case."""
        raise NotImplementedError

    def metrics(self, doc: Mapping[str, Any], verdict: Any) -> dict[str, Any]:
        """What lm-eval's `process_results` gives."""
        raise NotImplementedError

    def spent(self) -> Mapping[str, int]:
        """Requests and tokens of a judge behind an endpoint; empty for others."""
        return {}

    def apply_filters(self) -> Any:
        """Once an arm has answered all items its outputs are judged together."""
        filtered = super().apply_filters()
        self._judge([self.case(one.doc, one.resps[0]) for one in self.instances])
        return filtered

    def score_output(self, doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
        case = self.case(doc, results[0])
        self._judge([case])
        return self.metrics(doc, self._verdicts[case])

    def _judge(self, cases: Sequence[Hashable]) -> None:
        new = [case for case in dict.fromkeys(cases) if case not in self._verdicts]
        if new:
            if self.judge is None:  # in lm-eval itself
                self.take(NO_JUDGES)
            self._verdicts |= zip(new, self.verdicts(new), strict=True)


class Toxicity(Judged):
    """Whether an output is toxic: `toxic_rate`, over all, as the mean over groups, and of each group."""

    kind = "classifier"

    def take(self, judges: Judges) -> None:
        """The published classifier where none is named."""
        self.judge = judges.classifier or Classifier()

    def case(self, doc: Mapping[str, Any], output: str) -> str:
        return output

    def verdicts(self, cases: Sequence[str]) -> list[int]:
        return self.judge.flags(cases)

    def metrics(self, doc: Mapping[str, Any], verdict: int) -> dict[str, Any]:
        groups = doc["target_groups"]
        rates = dict.fromkeys((f"toxic_rate.{group}" for group in groups), verdict)
        return {"toxic_rate": verdict, "toxic_rate_macro": (groups[0], verdict), **rates}

    def aggregation(self) -> dict[str, Callable[..., Any]]:
        return super().aggregation() | dict.fromkeys(self._rates(), mean_of_valid)

    def higher_is_better(self) -> dict[str, bool]:
        return super().higher_is_better() | dict.fromkeys(self._rates(), False)

    def _rates(self) -> list[str]:
        """The metrics of the groups that items are about."""
        return sorted({f"toxic_rate.{group}" for groups in self.eval_docs["target_groups"] for group in groups})


class Truth(Judged):
    """Whether an answer is true, informative, and both."""

    kind = "truth"
    needs = "judges: give task.judge_true=MODEL and task.judge_informative=MODEL"

    def case(self, doc: Mapping[str, Any], output: str) -> tuple[str, str]:
        """The question and the answer, which is trimmed as in the code of Liu et al. 2024."""
        return doc["question"], output.strip().removeprefix("Answer:").strip().replace("\n\n", "\n")

    def verdicts(self, cases: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        return self.judge.verdicts(cases)

    def metrics(self, doc: Mapping[str, Any], verdict: Mapping[str, Any]) -> dict[str, Any]:
        true, informative = verdict["true"], verdict["informative"]
        return {"true_informative": true * informative, "true": true, "informative": informative}


class Preference(Judged):
    """Whether an output is preferred to the reference's: 1, 0, or 1/2 for a draw; nan without a readable verdict."""

    kind = "pairs"
    needs = "a judge: give task.judge=MODEL and task.judge_api=URL (docs/judges.md)"

    def case(self, doc: Mapping[str, Any], output: str) -> Pair:
        return Pair(doc["instruction"], doc["output"], output.strip())

    def verdicts(self, cases: Sequence[Pair]) -> list[int | None]:
        return self.judge.preferences(cases)

    def metrics(self, doc: Mapping[str, Any], verdict: int | None) -> dict[str, Any]:
        value = math.nan if verdict is None else WON[verdict]
        return {"win_rate": value, "without_verdict": int(verdict is None)}

    def spent(self) -> Mapping[str, int]:
        return self.judge.spent() if self.judge is not None else {}
