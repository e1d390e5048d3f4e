"""A Hugging Face cache of stand-ins, and invented task data, for tests that use the real names offline."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

ROOT = Path(__file__).parents[1]


def _script() -> Any:
    spec = importlib.util.spec_from_file_location("fill_standins", ROOT / "scripts" / "fill_standins.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return module


fill_standins = _script()


def use(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Makes `folder` what HF_HOME and PROXYTUNE_TRAINED are, without a network."""
    patch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    patch.setattr(constants, "HF_HUB_OFFLINE", True)
    patch.setenv("PROXYTUNE_TRAINED", str(folder / "trained"))


def write_data(folder: Path) -> None:
    """Six invented items a split of every task, in the layout of the hub's data sets."""
    numbers = range(6)
    gsm8k = [
        {"question": f"Ann has {i} apples and gets {i}. How many?", "answer": f"{i}+{i}={2 * i}\n#### {2 * i}"}
        for i in numbers
    ]
    trivia = [
        {"question": f"What is the capital of land {i}?", "answer": {"value": f"Town {i}", "aliases": [f"Town {i}"]}}
        for i in numbers
    ]
    options = [f"Answer {i}." for i in range(5)]
    choice = [
        {
            "question": f"What happens in case {i}?",
            "mc1_targets": {"choices": options, "labels": [1, 0, 0, 0, 0]},
            "mc2_targets": {"choices": options, "labels": [1, 1, 0, 0, 0]},
        }
        for i in numbers
    ]
    generation = [
        {
            "question": f"What happens in case {i}?",
            "best_answer": "Nothing at all.",
            "correct_answers": ["Nothing at all.", "Nothing."],
            "incorrect_answers": ["Something.", "Everything."],
        }
        for i in numbers
    ]
    news = [{"article": f"The mayor of town {i} opened a bridge.", "highlights": f"Town {i}: bridge."} for i in numbers]
    mmlu = [
        {"question": f"Which letter is {i}?", "subject": subject, "choices": ["a", "b", "c", "d"], "answer": i % 4}
        for i in numbers
        for subject in ("anatomy", "virology")
    ]
    code = [
        {"task_id": f"HumanEval/{i}", "prompt": "def f():\n", "test": "def check(f):\n    f()\n", "entry_point": "f"}
        for i in numbers
    ]
    mathematics = [{"problem": f"What is {i} + {i}?", "answer": f"{2 * i}"} for i in numbers]
    toxigen = [{"text": f"Those people number {i}", "target_groups": ["women", "asian"][i % 2 :][:1]} for i in numbers]
    news_quiz = [
        {
            "question_sentence": f"Who won race {i}?",
            "choices": [f"Team {n}" for n in numbers][:4],
            "answer": [str(i % 4)],
        }
        for i in numbers
    ]
    compared = [{"instruction": f"Name {i} towns.", "output": "Paris."} for i in numbers]
    for name, rows in {
        "alpacafarm/test": compared,
        "humaneval/test": code,
        "toxigen/test": toxigen,
        **{f"{task}/test": mathematics for task in ("math500", "aime24", "amc", "minerva", "olympiadbench")},
        "realtimeqa/test": news_quiz,
        "gsm8k/train": gsm8k,
        "gsm8k/test": gsm8k,
        "triviaqa/rc.nocontext_train": trivia,
        "triviaqa/rc.nocontext_validation": trivia,
        "truthfulqa/multiple_choice_validation": choice,
        "truthfulqa/generation_validation": generation,
        "cnn_dailymail/train": news,
        "cnn_dailymail/validation": news,
        "cnn_dailymail/test": news,
        "mmlu/dev": mmlu,
        "mmlu/validation": mmlu,
        "mmlu/test": mmlu,
    }.items():
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
