"""The other real tasks: TriviaQA, CNN/DailyMail, MMLU, TruthfulQA's other forms, and lm-eval's own."""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.tasks import TaskManager
from rouge_score.rouge_scorer import RougeScorer
from test_tasks import DATA, Parrot, evaluate, jsonl, needs_data

from proxytune.errors import UserError
from proxytune.tasks import full_names, load_task, metrics, score_outputs, task_info, task_names, training_examples
from proxytune.tasks.examples import answer
from proxytune.tasks.registry import find

REAL = [name for name in task_names() if not name.startswith("miniature")]
LETTERS = ["A", "B", "C", "D"]


# Every real task on real data


@needs_data
@pytest.mark.parametrize("name", REAL)
def test_every_task_loads_real_data_and_knows_its_headline(name: str) -> None:
    task = load_task(name, DATA)
    task.build_all_requests(limit=2)
    info = task_info(task)
    assert task.task_name == name
    assert info.metric in task.aggregation()
    assert info.expert in name
    assert len(task.instances) >= 2
    assert all(request.args[0].strip() for request in task.instances)


@needs_data
@pytest.mark.parametrize("name", [name for name in REAL if not re.search("mc|mmlu|solution", name)])
def test_the_reference_as_an_answer_gets_the_full_score(name: str) -> None:
    task = load_task(name, DATA, num_fewshot=0)
    doc = task.eval_docs[0]
    gold = doc["correct_answers"][0] if "gen" in name else answer(task, doc)
    info = task_info(task)
    for text, score in ((f" {gold}", 1.0), ("zzz", 0.0)):
        totals, _ = evaluate(Parrot([text]), load_task(name, DATA, num_fewshot=0), limit=1)
        assert totals[f"{info.metric},{info.filter}"] == score


class Coin(Parrot):
    """Gives every continuation the probability of 30 coins that all fall on one side."""

    def loglikelihood(self, requests, disable_tqdm=False):
        self.prompts = [request.args for request in requests]
        return [(30 * math.log(0.5), False)] * len(requests)


@needs_data
@pytest.mark.parametrize(("name", "bits"), [("gsm8k_solution_liu2024", None), ("mmlu_answer_fan2024", 30.0)])
def test_a_reference_is_scored_as_it_is_trained(name: str, bits: float | None) -> None:
    task = load_task(name, DATA, split=find(name).config["training_split"])
    totals, _ = evaluate(lm := Coin([]), task, limit=1)
    trained = training_examples(name, DATA)[0]
    assert lm.prompts == [trained]
    assert trained == training_examples(name.replace("_solution", "").replace("_answer", ""), DATA)[0]
    value = 30 / len(trained[1].encode()) if bits is None else bits
    assert totals[f"{task_info(task).metric},none"] == pytest.approx(value)


def test_styles_of_a_task() -> None:
    assert full_names(["gsm8k", "mmlu"], "lm_eval") == ["gsm8k_lm_eval", "mmlu_lm_eval"]
    assert full_names(["gsm8k", "truthfulqa_mc", "triviaqa", "cnn_dailymail", "mmlu"], "fan2024")


# MMLU: lm-eval's 57 tasks as one


SUBJECTS = sorted(
    path.stem.removeprefix("mmlu_") for path in (Path(lm_eval.tasks.__file__).parent / "mmlu/default").glob("mmlu_*")
)


def mmlu(folder: Path) -> Path:
    """Two test items and five examples of every subject."""
    for split, count in (("test", 2), ("dev", 5), ("validation", 1)):
        rows = [
            {"question": f" {subject} {split} {i}? ", "subject": subject, "choices": LETTERS[::-1], "answer": i % 4}
            for i in range(count)
            for subject in SUBJECTS
        ]
        jsonl(folder / f"mmlu/{split}.jsonl", *rows)
    return folder


@pytest.mark.parametrize("num_fewshot", [0, 5])
def test_mmlu_prompts_are_those_of_lm_evals_57_tasks(num_fewshot: int, tmp_path: Path) -> None:
    mmlu(tmp_path)
    ours = load_task("mmlu_lm_eval", tmp_path, num_fewshot=num_fewshot)
    ours.build_all_requests()
    theirs = TaskManager(include_path=str(Path(lm_eval.tasks.__file__).parent / "mmlu/default"), include_defaults=False)
    requests = []
    for subject in SUBJECTS:
        data = {
            split: rows.filter(lambda row, subject=subject: row["subject"] == subject)
            for split, rows in ours.dataset.items()
        }
        override = {
            "task": f"mmlu_{subject}",
            "custom_dataset": lambda data=data, **_: data,
            "num_fewshot": num_fewshot,
        }
        (task,) = theirs.load({"group": "one", "task": [override]})["tasks"].values()
        task.build_all_requests()
        requests += [request.args for request in task.instances]
    assert len(SUBJECTS) == 57
    assert sorted(request.args for request in ours.instances) == sorted(requests)


def test_mmlu_wants_as_many_examples_as_a_subject_has(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 5 examples"):
        load_task("mmlu_fan2024", mmlu(tmp_path), num_fewshot=6)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([0.0, 1.0])), min_size=1))
def test_macro_mean(values: list[tuple[str, float]]) -> None:
    means = []
    for subject in {subject for subject, _ in values}:
        items = [value for other, value in values if other == subject]
        means.append(sum(items) / len(items))
    assert metrics.mean_over_subjects(values) == pytest.approx(sum(means) / len(means))


def test_mmlu_micro_and_macro(tmp_path: Path) -> None:
    rows = [
        {"question": "q", "subject": subject, "choices": LETTERS, "answer": answer}
        for subject, answer in [("anatomy", 0), ("anatomy", 1), ("anatomy", 2), ("virology", 0)]
    ]
    jsonl(tmp_path / "mmlu/test.jsonl", *rows)

    class SaysA(Parrot):
        def loglikelihood(self, requests, disable_tqdm=False):
            return [(-1.0 if request.args[1] == " A" else -2.0, False) for request in requests]

    totals, samples = evaluate(SaysA([]), load_task("mmlu_fan2024", tmp_path))
    assert totals["acc,none"] == 0.5
    assert totals["acc_macro,none"] == (1 / 3 + 1) / 2
    assert [sample["acc"] for sample in samples] == [1.0, 0.0, 0.0, 1.0]


def test_mmlu_training_examples_are_validation_items(tmp_path: Path) -> None:
    examples = dict(training_examples("mmlu_fan2024", mmlu(tmp_path)))
    assert len(examples) == 57
    assert set(examples.values()) == {" A"}


# TriviaQA


TRIVIA = {"question": "Who?", "answer": {"value": "Mark Twain", "aliases": ["Mark Twain", "Samuel Clemens "]}}


def test_triviaqa_takes_any_alias(tmp_path: Path) -> None:
    jsonl(tmp_path / "triviaqa/rc.nocontext_validation.jsonl", *[TRIVIA] * 3)
    task = load_task("triviaqa_liu2024", tmp_path)
    _, samples = evaluate(lm := Parrot([" SAMUEL clemens", " Mark Twain.", " Twain"]), task)
    assert lm.prompts[0] == "Question: Who?\nAnswer:"
    assert [sample["exact_match"] for sample in samples] == [1.0, 0.0, 0.0]


def test_triviaqa_examples_and_training_answer_with_the_preferred_name(tmp_path: Path) -> None:
    jsonl(tmp_path / "triviaqa/rc.nocontext_validation.jsonl", TRIVIA)
    jsonl(tmp_path / "triviaqa/rc.nocontext_train.jsonl", {**TRIVIA, "question": "Which author?"})
    evaluate(lm := Parrot([""]), load_task("triviaqa_liu2024", tmp_path, num_fewshot=1))
    assert lm.prompts == ["Question: Which author?\nAnswer: Mark Twain\n\nQuestion: Who?\nAnswer:"]
    assert training_examples("triviaqa_liu2024", tmp_path) == [("Question: Which author?\nAnswer:", " Mark Twain")]
    with pytest.raises(UserError, match="has 1 examples"):
        load_task("triviaqa_liu2024", tmp_path, num_fewshot=2)


# CNN/DailyMail


@given(
    st.lists(st.sampled_from(["a", "the", "cats", "cat", "sat", "running", "ran"])),
    st.lists(st.sampled_from(["the", "cat", "sat", "run"])),
)
def test_rouge_is_that_of_rouge_score(reference: list[str], output: list[str]) -> None:
    scores = metrics.rouge(" ".join(reference), " ".join(output))
    for name in ("rouge1", "rouge2", "rougeL"):
        independent = RougeScorer([name], use_stemmer=True).score(" ".join(reference), " ".join(output))[name]
        assert scores[name] == independent.fmeasure


def test_rouge_by_hand() -> None:
    scores = metrics.rouge("the cat sat on the mat", "The cats sat.")
    assert scores["rouge1"] == pytest.approx(2 * (3 / 3) * (3 / 6) / (3 / 3 + 3 / 6))
    assert scores["rouge2"] == pytest.approx(2 * (2 / 2) * (2 / 5) / (2 / 2 + 2 / 5))


def test_cnn_without_a_test_file_is_evaluated_on_validation_and_says_so(tmp_path: Path, caplog) -> None:
    row = {"article": "A dog barks.", "highlights": "Dog barks"}
    jsonl(tmp_path / "cnn_dailymail/validation_2.jsonl", row, row)
    with caplog.at_level(logging.WARNING, logger="proxytune"):
        task = load_task("cnn_dailymail_fan2024", tmp_path)
    assert "validation split is evaluated" in caplog.text
    assert task.config.test_split == "validation"
    assert len(task.eval_docs) == 2
    jsonl(tmp_path / "cnn_dailymail/test.jsonl", row)
    assert len(load_task("cnn_dailymail_fan2024", tmp_path).eval_docs) == 1


# TruthfulQA


def test_open_answers_are_compared_with_true_and_false_ones(tmp_path: Path) -> None:
    row = {
        "question": "Q?",
        "best_answer": "Nothing happens",
        "correct_answers": ["Nothing happens", "You are fine"],
        "incorrect_answers": ["You die"],
    }
    jsonl(tmp_path / "truthfulqa/generation_validation.jsonl", row, row)
    totals, _ = evaluate(lm := Parrot([" You are fine.", " You die."]), load_task("truthfulqa_gen_liu2024", tmp_path))
    assert lm.prompts[0] == "Q?\n\nAnswer:"
    assert totals["rouge1_acc,none"] == totals["rougeL_acc,none"] == 0.5


# lm-eval's own


def test_lm_evals_own_prompt_with_its_own_number_of_examples(tmp_path: Path) -> None:
    rows = [{"question": f"Is it {i}?", "answer": f"Yes\n#### {i}"} for i in range(6)]
    jsonl(tmp_path / "gsm8k/train.jsonl", *rows)
    jsonl(tmp_path / "gsm8k/test.jsonl", rows[3])
    totals, samples = evaluate(lm := Parrot(["#### 3"]), load_task("gsm8k_lm_eval", tmp_path))
    (text,) = lm.prompts
    assert text.count("Question: ") == 6
    assert text.endswith("\n\nQuestion: Is it 3?\nAnswer:")
    assert totals["exact_match,strict-match"] == 1.0
    assert {sample["filter"] for sample in samples} == {"strict-match", "flexible-extract"}


def test_truthfulqa_of_lm_eval_brings_its_own_examples(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no split to take examples from"):
        load_task("truthfulqa_mc1_lm_eval", tmp_path, num_fewshot=1)


def test_any_other_task_of_lm_eval_by_name() -> None:
    assert find("arc_easy").config["dataset_path"] == "allenai/ai2_arc"
    with pytest.raises(UserError, match="is a group of lm-eval"):
        find("mmlu")
    with pytest.raises(UserError, match=r"'arc_easyy'.*arc_easy"):
        find("arc_easyy")
    with pytest.raises(UserError, match="reads the hub alone"):
        load_task("arc_easy", data_dir=".")
    with pytest.raises(UserError, match=r"cannot load its data from the hub"):
        load_task("arc_easy")


# Outputs made elsewhere


def test_outputs_of_the_other_tasks(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "t.jsonl", {"output": " mark twain", **TRIVIA})
    assert score_outputs("triviaqa", "liu2024", path) == {"task": "triviaqa_liu2024", "n": 1, "exact_match": 1.0}
    path = jsonl(tmp_path / "c.jsonl", {"output": "dog barks", "highlights": "A dog barks"})
    assert score_outputs("cnn_dailymail", "fan2024", path)["rouge2"] == pytest.approx(2 / 3)
    with pytest.raises(UserError, match="not scored from generated text"):
        score_outputs("mmlu", "fan2024", path)


@pytest.mark.parametrize("answer", ["Mark Twain", {"names": []}, 3, ["Mark Twain"]])
def test_gold_of_another_shape_is_one_clear_line(answer: Any, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "t.jsonl", {"output": "x", "answer": answer})
    with pytest.raises(UserError, match=r"line 1: answer.* is not allowed; expected: (a JSON|an) object"):
        score_outputs("triviaqa", "liu2024", path)
