"""Tasks whose outputs other models judge: ToxiGen, TruthfulQA's open answers, AlpacaFarm."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, ClassVar

from lm_eval.api.task import ConfigurableTask

from proxytune.errors import UserError
from proxytune.tasks.classifier import Classifier
from proxytune.tasks.judges import Judges, Pair, PairJudge, TruthJudges
from proxytune.tasks.metrics import mean_of_valid


class Judged(ConfigurableTask):
    """An lm-eval task whose metrics come from verdicts, each asked for once: a run scores its answers as they come in,
    and again at the end."""

    kind: ClassVar[str]
    """The field of `Judges` that has the task's judge."""

    def __init__(self, config: dict[str, Any]) -> None:
        own = {key: value for key, value in config.items() if key != "class"}
        # Not the method itself: lm-eval copies a task's configuration, and with a method its task and its judge.
        super().__init__(config=own | {"process_results": lambda doc, results: self.score_output(doc, results)})
        self._verdicts: dict[Hashable, Any] = {}

    def take(self, judges: Judges) -> None:
        """The judge is among `judges`. Raises UserError where none is named."""
        raise NotImplementedError

    def case(self, doc: Mapping[str, Any], output: str) -> Hashable:
        """What the judge sees of an item."""
        raise NotImplementedError

    def judge(self, cases: Sequence[Any]) -> Sequence[Any]:
        """A verdict on each case."""
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
            self._verdicts |= zip(new, self.judge(new), strict=True)


class Toxicity(Judged):
    """Whether an output is toxic: `toxic_rate`, over all, as the mean over groups, and of each group."""

    kind = "classifier"
    classifier: Classifier | None = None
    """None: the published one, once it is needed."""

    def take(self, judges: Judges) -> None:
        self.classifier = judges.classifier or Classifier()

    def case(self, doc: Mapping[str, Any], output: str) -> str:
        return output

    def judge(self, cases: Sequence[str]) -> list[int]:
        self.classifier = self.classifier or Classifier()
        return self.classifier.flags(cases)

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
    judges: TruthJudges | None = None

    def take(self, judges: Judges) -> None:
        if judges.truth is None:
            raise UserError(
                f"task {self.task_name!r} needs judges: give task.judge_true=MODEL and task.judge_informative=MODEL"
            )
        self.judges = judges.truth

    def case(self, doc: Mapping[str, Any], output: str) -> tuple[str, str]:
        """The question and the answer, which is trimmed as in the code of Liu et al. 2024."""
        return doc["question"], output.strip().removeprefix("Answer:").strip().replace("\n\n", "\n")

    def judge(self, cases: Sequence[tuple[str, str]]) -> Sequence[Mapping[str, Any]]:
        assert self.judges is not None
        return self.judges.verdicts(cases)

    def metrics(self, doc: Mapping[str, Any], verdict: Mapping[str, Any]) -> dict[str, Any]:
        true, informative = verdict["true"], verdict["informative"]
        return {"true_informative": true * informative, "true": true, "informative": informative}


class Preference(Judged):
    """Whether an output is preferred to the reference's: 1, 0, or 1/2 for a draw."""

    kind = "pairs"
    pair_judge: PairJudge | None = None

    def take(self, judges: Judges) -> None:
        if judges.pairs is None:
            raise UserError(
                f"task {self.task_name!r} needs a judge: give task.judge=MODEL and task.judge_api=URL (docs/judges.md)"
            )
        self.pair_judge = judges.pairs

    def case(self, doc: Mapping[str, Any], output: str) -> Pair:
        return Pair(doc["instruction"], doc["output"], output.strip())

    def judge(self, cases: Sequence[Pair]) -> list[int | None]:
        assert self.pair_judge is not None
        return self.pair_judge.preferences(cases)

    def spent(self) -> Mapping[str, int]:
        return self.pair_judge.spent() if self.pair_judge else {}

    def metrics(self, doc: Mapping[str, Any], verdict: int | None) -> dict[str, Any]:
        value = math.nan if verdict is None else {1: 0.0, 2: 1.0, 0: 0.5}[verdict]
        return {"win_rate": value, "without_verdict": int(verdict is None)}
