"""One task over many subjects, each item prompted within its own."""

from __future__ import annotations

from typing import Any

from lm_eval.api.task import ConfigurableTask

from proxytune.errors import UserError


class BySubject(ConfigurableTask):
    """An lm-eval task whose few-shot examples are of the item's own `subject`."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={key: value for key, value in config.items() if key != "class"})
        self._pools: dict[str, list[dict[str, Any]]] = {}
        for example in self.sampler.df:
            self._pools.setdefault(example["subject"], []).append(example)

    def fewshot_context(self, doc: dict[str, Any], num_fewshot: int, **options: Any) -> str | list[str]:
        if num_fewshot > 0:
            pool = self._pools.get(doc["subject"], [])
            if len(pool) < num_fewshot:
                raise UserError(f"num_fewshot={num_fewshot}: {doc['subject']} has {len(pool)} examples.")
            self.sampler.replace_df(pool)
        return super().fewshot_context(doc, num_fewshot, **options)
