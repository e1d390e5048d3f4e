"""How a data set's rows become the documents a prompt is made of (`process_docs` of the task YAMLs)."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from datasets import Dataset

from proxytune.tasks.metrics import LETTERS


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
