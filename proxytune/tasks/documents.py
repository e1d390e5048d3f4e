"""From a data set's rows to prompts where YAML is not enough: functions and classes that task YAMLs name."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from datasets import Dataset
from lm_eval.api.task import ConfigurableTask

from proxytune.compat.lm_eval import fewshot_examples, set_fewshot_examples
from proxytune.errors import UserError
from proxytune.tasks.metrics import LETTERS, gsm8k_gold


def four_options(dataset: Dataset) -> Dataset:
    """TruthfulQA rows with `options` (lines "A. ...") and `answer` (the true one's letter) as in Liu et al. 2024.

    Three false answers (or as many as there are) are drawn and shuffled with the true one by a single generator, seed
    42, over the questions in order. That gives all 817 published prompts, so the split must be whole and in its order.
    """
    draw = random.Random(42)
    return Dataset.from_list([_lettered(row, draw) for row in dataset])


def _lettered(row: dict, draw: random.Random) -> dict[str, str]:
    truth, *lies = [_sentence(choice) for choice in row["mc1_targets"]["choices"]]
    options = [truth, *draw.sample(lies, min(3, len(lies)))]
    draw.shuffle(options)
    lines = [f"{name}. {option}" for name, option in zip(LETTERS, options, strict=False)]
    return {"question": row["question"], "options": "\n".join(lines), "answer": LETTERS[options.index(truth)]}


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith(".") else f"{text}."


def trivia_answer(doc: Mapping[str, Any]) -> str:
    """TriviaQA's preferred name of the answer, the target of training and few-shot examples."""
    return doc["answer"]["value"]


def gsm8k_problems(dataset: Dataset) -> Dataset:
    """GSM8K as `problem` and only the number as `answer`."""
    rows = [{"problem": row["question"], "answer": gsm8k_gold(row["answer"])} for row in dataset]
    return Dataset.from_list(rows)


class BySubject(ConfigurableTask):
    """An lm-eval task over many subjects (the column `subject`): few-shot examples are of the item's own subject, and
    a limit is spread over the subjects."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={key: value for key, value in config.items() if key != "class"})
        self._pools: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for example in fewshot_examples(self):
            self._pools[example["subject"]].append(example)

    def check_examples(self) -> None:
        """Raises UserError for a subject with fewer examples than `num_fewshot`."""
        wanted = self.config.num_fewshot
        for subject in dict.fromkeys(self.eval_docs["subject"]):
            if (has := len(self._pools[subject])) < wanted:
                raise UserError(f"num_fewshot={wanted} is not allowed: {subject} has examples for at most {has}")

    def fewshot_context(self, doc: dict[str, Any], num_fewshot: int, **options: Any) -> str | list[str]:
        if num_fewshot > 0:
            set_fewshot_examples(self, self._pools[doc["subject"]])
        return super().fewshot_context(doc, num_fewshot, **options)

    def items_of_groups(self, items: Sequence[int]) -> dict[str, int]:
        """Subject -> how many of `items` it has, 0 included."""
        subjects = list(self.eval_docs["subject"])
        return dict.fromkeys(subjects, 0) | Counter(subjects[item] for item in items)

    def doc_iterator(
        self, *, rank: int = 0, limit: int | None = None, world_size: int = 1, samples: list[int] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """(item, document); with a limit those of `spread`, each under its number in the whole split."""
        if samples or not limit:
            yield from super().doc_iterator(rank=rank, limit=limit, world_size=world_size, samples=samples)
        else:
            docs = self.eval_docs
            for item in islice(spread(list(docs["subject"]), limit), rank, None, world_size):
                yield item, docs[item]


def spread(groups: list[str], limit: int) -> list[int]:
    """The `limit` items, in order, that represent `groups` (the group of each item) in proportion to their sizes.

    Of each group its first items. The seats of the groups follow Webster's method: the j-th item (from 0) of a group
    of s items has the rank (j + 1/2) / s, and the lowest ranks are taken, of equal ones the earlier item. A larger
    limit therefore only adds items.
    """
    sizes = Counter(groups)
    seen: Counter[str] = Counter()
    ranks = []
    for item, group in enumerate(groups):
        ranks.append(((seen[group] + 0.5) / sizes[group], item))
        seen[group] += 1
    return sorted(item for _, item in sorted(ranks)[:limit])
