"""Invented rows in the format of every real data set, and of the outputs published with Liu et al. 2024.

write(folder)     the rows as JSON lines, under the names that the tasks look for
FOLDER            the real data: $PROXYTUNE_TEST_DATA, or ../shared/data beside the repository
needs_real        skips a test where that folder is absent
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(os.environ.get("PROXYTUNE_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data").expanduser()
needs_real = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no real data in {FOLDER} ($PROXYTUNE_TEST_DATA)")

LETTERS = ["A", "B", "C", "D"]
MC = [
    {
        "question": "Can a stone swim?",
        "mc1_targets": {"choices": ["No, it sinks", "Yes.", "Only at night", "Stones fly"], "labels": [1, 0, 0, 0]},
        "mc2_targets": {"choices": ["No, it sinks", "It cannot", "Yes.", "Stones fly"], "labels": [1, 1, 0, 0]},
    },
    {
        "question": "Is the sea salty?",
        "mc1_targets": {"choices": [" Yes ", "No"], "labels": [1, 0]},
        "mc2_targets": {"choices": [" Yes ", "No"], "labels": [1, 0]},
    },
]
GENERATION = [
    {
        "question": "Can a stone swim?",
        "best_answer": "No, a stone sinks",
        "correct_answers": ["No, a stone sinks", "It goes down"],
        "incorrect_answers": ["Yes, a stone swims"],
    },
    {
        "question": "Is the sea salty?",
        "best_answer": "It is salty",
        "correct_answers": ["It is salty"],
        "incorrect_answers": ["It is sweet", "Nobody knows"],
    },
]


def gsm8k(question: str, answer: str) -> dict[str, Any]:
    return {"question": question, "answer": answer}


def trivia(question: str, *names: str) -> dict[str, Any]:
    return {"question": question, "answer": {"value": names[0], "aliases": list(names)}}


def mmlu(question: str, subject: str, answer: int) -> dict[str, Any]:
    return {"question": question, "subject": subject, "choices": ["one", "two", "three", "four"], "answer": answer}


def cnn(article: str, highlights: str) -> dict[str, Any]:
    return {"article": article, "highlights": highlights}


def mathematics(problem: str, answer: str) -> dict[str, Any]:
    return {"problem": problem, "answer": answer}


def program(number: int) -> dict[str, Any]:
    asked = {"text": f"Write a function that adds {number}.", "code": f"def add(x):\n    return x + {number}"}
    return {"task_id": number, **asked, "test_list": [f"assert add({i}) == {number + i}" for i in range(3)]}


SUMS = [mathematics("What is 3 + 4?", "7"), mathematics("Half of one?", "\\frac{1}{2}")]
DATA: dict[str, list[dict[str, Any]]] = {
    **{f"{name}/test.jsonl": SUMS for name in ("aime24", "amc", "math500", "minerva", "olympiadbench")},
    "humaneval/test.jsonl": [
        {
            "task_id": f"HumanEval/{i}",
            "prompt": f"def add(x):\n    # adds {i}\n",
            "test": f"def check(f):\n    assert f(1) == {i + 1}\n",
            "entry_point": "add",
        }
        for i in range(2)
    ],
    "mbpp/prompt.jsonl": [program(number) for number in (2, 3, 4)],
    "mbpp/test.jsonl": [program(number) for number in (11, 12)],
    "realtimeqa/test.jsonl": [
        {"question_sentence": f"Who won race {i}?", "choices": ["one", "two", "three", "four"], "answer": [str(i)]}
        for i in range(2)
    ],
    "alpacafarm/test.jsonl": [{"instruction": f"Name {i} towns.", "output": "Paris"} for i in range(2)],
    "toxigen/test.jsonl": [{"text": f"those people {i}", "target_groups": ["women"]} for i in range(2)],
    "gsm8k/test.jsonl": [
        gsm8k(" Ann has 3 pens and buys 4. How many? ", "3 + 4 = <<3+4=7>>7\n#### 7"),
        gsm8k("A ship weighs 1,200 tons. Half of it?", "1200 / 2 = 600\n#### 600"),
        gsm8k("Two towns have 1,100 and 134 people. Together?", "#### 1,234"),
    ],
    "gsm8k/train.jsonl": [
        gsm8k("One and one?", "1 + 1 = 2\n#### 2"),
        gsm8k("Three less two?", "é: 3 - 2 = 1\n#### 1"),
        *[gsm8k(f"{i} and {i}?", f"{i} + {i} = {2 * i}\n#### {2 * i}") for i in range(3, 6)],
    ],
    "triviaqa/rc.nocontext_validation.jsonl": [
        trivia("Who wrote the blue book?", "Ada Quill", "A. Quill ", "Quill"),
        trivia("Where is Zendor?", "Östland", "Ostland"),
    ],
    "triviaqa/rc.nocontext_train.jsonl": [trivia("Who drew the map?", "Ben Ink", "B. Ink")],
    "truthfulqa/multiple_choice_validation.jsonl": MC,
    "truthfulqa/generation_validation.jsonl": GENERATION,
    "mmlu/test.jsonl": [
        *[mmlu(f"Law {i}?", "roman_law", i % 4) for i in range(6)],
        *[mmlu(f" Star {i}? ", "astronomy", i % 4) for i in range(2)],
        *[mmlu(f"Rite {i}?", "anatomy", i % 4) for i in range(4)],
    ],
    "mmlu/dev.jsonl": [
        mmlu(f"{subject} dev {i}?", subject, i % 4)
        for i in range(5)
        for subject in ("anatomy", "astronomy", "roman_law")
    ],
    "mmlu/validation.jsonl": [mmlu("Bone?", "anatomy", 2), mmlu("Moon?", "astronomy", 0)],
    "cnn_dailymail/validation.jsonl": [
        cnn("The mayor opened a bridge. It is long.", "Mayor opens bridge"),
        cnn("Rain fell all day.", "It rained"),
    ],
    "cnn_dailymail/train.jsonl": [cnn("A dog barked.", "Dog barks")],
}
PUBLISHED: dict[str, list[dict[str, Any]]] = {
    # number parsed, right or wrong: 18 right, 4 right (ends at the next question), 12 wrong, 1200.5 right, none wrong
    "gsm/invented.jsonl": [
        {"question": "a?", "answer": "18", "model_output": " 9 * 2 = $18.", "prediction": "18"},
        {"question": "b?", "answer": "4", "model_output": " so 4.\n\nQuestion: 2 + 3? 5", "prediction": "4"},
        {"question": "c?", "answer": "20", "model_output": " It is 12\nComment: or 20", "prediction": "12"},
        {"question": "d?", "answer": "1200.5", "model_output": " 1,200.50 or 1,200.5", "prediction": "1200.5"},
        {"question": "e?", "answer": "5", "model_output": " I do not know", "prediction": " I do not know"},
    ],
    # B right, C wrong, D right behind a wrapper, nothing invalid, lower case invalid
    "truthfulqa_mc/invented.jsonl": [
        {"Question": "a?", "mc_prompt": "", "mc_answer_idx": "B", "mc_output": " B", "parsed_output": "B"},
        {"Question": "b?", "mc_prompt": "", "mc_answer_idx": "A", "mc_output": "\n\nC. It", "parsed_output": "C"},
        {
            "Question": "c?",
            "mc_prompt": "",
            "mc_answer_idx": "D",
            "mc_output": "\n\\begin{blockquote}\n (D",
            "parsed_output": "D",
        },
        {"Question": "d?", "mc_prompt": "", "mc_answer_idx": "A", "mc_output": " \n", "parsed_output": ""},
        {"Question": "e?", "mc_prompt": "", "mc_answer_idx": "A", "mc_output": " a", "parsed_output": ""},
    ],
}


def write(folder: Path) -> Path:
    """All rows under `folder`, which is returned; the published ones under published/liu2024."""
    files = DATA | {f"published/liu2024/{name}": rows for name, rows in PUBLISHED.items()}
    for name, rows in files.items():
        jsonl(folder / name, *rows)
    return folder


def jsonl(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
