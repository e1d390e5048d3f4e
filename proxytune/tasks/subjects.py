"""One task over many subjects, each item prompted within its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm_eval.api.task import ConfigurableTask

from proxytune.compat.lm_eval import fewshot_examples, set_fewshot_examples
from proxytune.errors import UserError


class BySubject(ConfigurableTask):
    """An lm-eval task whose few-shot examples are of the item's own `subject`."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={key: value for key, value in config.items() if key != "class"})
        self._pools: dict[str, list[Mapping[str, Any]]] = {}
        for example in fewshot_examples(self):
            self._pools.setdefault(example["subject"], []).append(example)

    def check_examples(self) -> None:
        """Raises UserError for a subject with fewer examples than `num_fewshot`."""
        for subject in dict.fromkeys(self.eval_docs["subject"]):
            if len(self._pools.get(subject, [])) < self.config.num_fewshot:
                examples = f"{len(self._pools.get(subject, []))} examples"
                raise UserError(f"num_fewshot={self.config.num_fewshot}: {subject} has {examples} to take them from.")

    def fewshot_context(self, doc: dict[str, Any], num_fewshot: int, **options: Any) -> str | list[str]:
        if num_fewshot > 0:
            set_fewshot_examples(self, self._pools[doc["subject"]])
        return super().fewshot_context(doc, num_fewshot, **options)
