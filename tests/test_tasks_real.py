"""The papers' tasks, prompt by prompt and metric by metric: on invented rows, and on the real data where it is."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pytest
from hypothesis import given
from hypothesis import strategies as st
from invented import FOLDER, LETTERS, jsonl, needs_real, rows_of, write
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from test_tasks import Parrot, evaluate
from tiny import tiny_llama, tiny_tokenizer

from proxytune.errors import UserError
from proxytune.tasks import (
    data_record,
    find,
    full_names,
    load_task,
    metrics,
    score_outputs,
    task_info,
    task_names,
    training_examples,
)
from proxytune.tasks.data import NoLocalData
from proxytune.tasks.documents import spread
from proxytune.tasks.loading import answer, prompt

REAL = [name for name in task_names() if not name.startswith("miniature")]

SKILLS = {"chat", "code", "math"}
"""Experts of several tasks, which have none of their own."""
NO_TEXT = "mc|mmlu|solution|humaneval|mbpp|toxigen|alpacafarm|truthfulqa_open"
"""Tasks whose answer is a choice, a score, or to be run, classified or judged."""


@pytest.fixture(scope="session")
def invented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of invented rows. Do not write into it."""
    return write(tmp_path_factory.mktemp("invented"))


@pytest.fixture(params=["invented", pytest.param("real", marks=needs_real)])
def folder(request: pytest.FixtureRequest, invented: Path) -> Path:
    return invented if request.param == "invented" else FOLDER


# Every task


def loaded(name: str, folder: Path, **options: Any) -> Any:
    """The task; skips the test where the real data lack it."""
    try:
        return load_task(name, folder, **options)
    except NoLocalData as error:
        if folder != FOLDER:
            raise
        pytest.skip(str(error))


@pytest.mark.parametrize("name", REAL)
def test_every_task_loads_its_data_and_knows_its_headline(name: str, folder: Path) -> None:
    task = loaded(name, folder)
    task.build_all_requests(limit=2)
    info = task_info(task)
    assert task.task_name == name
    assert info.metric in task.aggregation()
    assert info.expert in name or info.expert in SKILLS
    assert len({request.doc_id for request in task.instances}) == 2
    assert all(request.args[0].strip() for request in task.instances)


@pytest.mark.parametrize("name", [name for name in REAL if not re.search(NO_TEXT, name)])
def test_the_reference_as_an_answer_gets_the_full_score(name: str, folder: Path) -> None:
    task = loaded(name, folder, num_fewshot=0)
    doc = task.eval_docs[0]
    gold = doc["correct_answers"][0] if "gen" in name else answer(task, doc)
    info = task_info(task)
    for text, score in ((f" {gold}", 1.0), ("zzz", 0.0)):
        totals, _ = evaluate(Parrot([text]), load_task(name, folder, num_fewshot=0), limit=1)
        assert totals[f"{info.metric},{info.filter}"] == score


@pytest.mark.parametrize("name", ["alpacafarm_liu2024", "truthfulqa_open_liu2024"])
def test_a_judged_task_without_a_judge_says_what_it_needs(name: str, invented: Path) -> None:
    with pytest.raises(UserError, match=rf"task '{name}' needs (a judge|judges): give task\.judge"):
        evaluate(Parrot(["x"]), load_task(name, invented), limit=1)


GSM8K = "Answer the following question.\n\nQuestion: "
MMLU = "The following are multiple choice questions (with answers) about roman law.\n\n"
OPTIONS = "\nA. one\nB. two\nC. three\nD. four\nAnswer:"
PROMPTS = {
    "gsm8k_liu2024": f"{GSM8K}Ann has 3 pens and buys 4. How many?\nAnswer:",
    "gsm8k_fan2024": f"{GSM8K}Ann has 3 pens and buys 4. How many?\nAnswer:",
    "gsm8k_solution_liu2024": f"{GSM8K}Ann has 3 pens and buys 4. How many?\nAnswer:",
    "triviaqa_liu2024": "Question: Who wrote the blue book?\nAnswer:",
    "triviaqa_fan2024": "Question: Who wrote the blue book?\nAnswer:",
    "truthfulqa_gen_liu2024": "Can a stone swim?\n\nAnswer:",
    "cnn_dailymail_fan2024": "Article: The mayor opened a bridge. It is long.\n\nSummary:",
    "mmlu_fan2024": f"{MMLU}Law 0?{OPTIONS}",
    "mmlu_answer_fan2024": f"{MMLU}Law 0?{OPTIONS}",
    "mmlu_lm_eval": f"{MMLU}Law 0?{OPTIONS}",
}
"""Task -> the prompt of its first invented item."""


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_to_the_letter(name: str, invented: Path) -> None:
    task = load_task(name, invented)
    assert prompt(task, task.eval_docs[0]) == PROMPTS[name]


EXAMPLES = {
    "gsm8k_liu2024": (f"{GSM8K}One and one?\nAnswer:", " 1 + 1 = 2\n#### 2"),
    "gsm8k_solution_liu2024": (f"{GSM8K}One and one?\nAnswer:", " 1 + 1 = 2\n#### 2"),
    "triviaqa_fan2024": ("Question: Who drew the map?\nAnswer:", " Ben Ink"),
    "cnn_dailymail_fan2024": ("Article: A dog barked.\n\nSummary:", " Dog barks"),
    "mmlu_fan2024": (f"{MMLU.replace('roman law', 'anatomy')}Bone?{OPTIONS}", " C"),
    "mmlu_answer_fan2024": (f"{MMLU.replace('roman law', 'anatomy')}Bone?{OPTIONS}", " C"),
}
"""Task -> its first training example on the invented rows."""


@pytest.mark.parametrize("name", EXAMPLES)
def test_training_examples_to_the_letter(name: str, invented: Path) -> None:
    assert training_examples(name, invented)[0] == EXAMPLES[name]


class Coin(Parrot):
    """Gives every continuation the probability of 30 coins that all fall on one side."""

    def loglikelihood(self, requests, disable_tqdm=False):
        self.prompts = [request.args for request in requests]
        return [(30 * math.log(0.5), False)] * len(requests)


@pytest.mark.parametrize(("name", "bits"), [("gsm8k_solution_liu2024", None), ("mmlu_answer_fan2024", 30.0)])
def test_a_reference_is_scored_as_it_is_trained(name: str, bits: float | None, invented: Path) -> None:
    task = load_task(name, invented, split=find(name).config["training_split"])
    totals, samples = evaluate(lm := Coin([]), task, limit=2)
    trained = training_examples(name, invented)
    assert trained == training_examples(name.replace("_solution", "").replace("_answer", ""), invented)
    asked = [trained[sample["doc_id"]] for sample in samples]
    assert lm.prompts == asked
    values = [30 / len(target.encode()) if bits is None else bits for _, target in asked]
    assert totals[f"{task_info(task).metric},none"] == pytest.approx(sum(values) / len(values))


def test_styles_of_a_task() -> None:
    assert full_names(["gsm8k", "mmlu"], "lm_eval") == ["gsm8k_lm_eval", "mmlu_lm_eval"]
    assert full_names(["gsm8k", "truthfulqa_mc", "triviaqa", "cnn_dailymail", "mmlu"], "fan2024")


@pytest.mark.parametrize("name", ["truthfulqa_mc_liu2024", "mmlu_fan2024"])
def test_a_real_model_answers_through_hflm(name: str, folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    lm = HFLM(tiny_llama(len(tokenizer), seed=0), tokenizer=tokenizer, max_length=1024, batch_size=2)
    totals, samples = evaluate(lm, load_task(name, folder), limit=2)
    _, same = evaluate(lm, load_task(name, folder), limit=2)
    assert len(samples) == 2
    assert [sample["resps"] for sample in samples] == [sample["resps"] for sample in same]
    if "invalid,none" in totals:
        assert totals["invalid,none"] == sum(sample["invalid"] for sample in samples)


# Outputs published with Liu et al. 2024

INVENTED = {
    ("gsm8k", "gsm/invented"): {"exact_match": 3 / 5},
    ("truthfulqa_mc", "truthfulqa_mc/invented"): {"acc": 2 / 3, "invalid": 2},
}
FIGURES = {
    ("gsm8k", "gsm/dexperts-70B"): {"exact_match": 0.33510235026535257},
    ("gsm8k", "gsm/llama2-70B"): {"exact_match": 0.09628506444275967},
    ("gsm8k", "gsm/llama2-chat-70B"): {"exact_match": 0.5178165276724791},
    ("gsm8k", "gsm/dexperts-gsm-70B"): {"exact_match": 0.5390447308567097},
    ("gsm8k", "gsm/llama2-gsm-70B"): {"exact_match": 0.6785443517816527},
    ("truthfulqa_mc", "truthfulqa_mc/dexperts-70B-helpful-prompt"): {"acc": 0.5919117647058824, "invalid": 1},
    ("truthfulqa_mc", "truthfulqa_mc/llama2-70B"): {"acc": 0.4231311706629055, "invalid": 108},
    ("truthfulqa_mc", "truthfulqa_mc/llama2-chat-70B-helpful-prompt"): {"acc": 0.6825980392156863, "invalid": 1},
}


@pytest.mark.parametrize(
    ("task", "file"), [*INVENTED, *(pytest.param(*figure, marks=needs_real) for figure in FIGURES)]
)
def test_published_outputs_give_the_published_figures(task: str, file: str, invented: Path) -> None:
    ours = (task, file) in INVENTED
    path = (invented if ours else FOLDER) / f"published/liu2024/{file}.jsonl"
    expected = (INVENTED if ours else FIGURES)[task, file]
    for style in ("liu2024", "fan2024"):
        scores = score_outputs(task, style, path)
        assert scores == {"task": f"{task}_{style}", "n": len(rows_of(path)), **expected}


VERDICT_FIGURES = {
    ("humaneval", "codex_humaneval/dexperts-70B-t0.8"): {"pass_at_10": 0.7066358846922164},
    ("humaneval", "codex_humaneval/llama2-70B-t0.8"): {"pass_at_10": 0.6202042218900181},
    ("humaneval", "codex_humaneval/codellama-70B-t0.8"): {"pass_at_10": 0.8923140355453653},
    ("toxigen", "toxigen/dexperts-70B"): {"toxic_rate": 0.0},
    ("toxigen", "toxigen/llama2-70B"): {"toxic_rate": 0.6735714285714286},
    ("toxigen", "toxigen/llama2-chat-70B"): {"toxic_rate": 0.0},
    ("alpacafarm", "alpaca_farm/dexperts-70B"): {
        "win_rate": 87.95031055900621,
        "win_rate_stderr": 1.1480970240838428,
        "draws": 0,
    },
    ("alpacafarm", "alpaca_farm/llama2-chat-70B"): {
        "win_rate": 90.37267080745342,
        "win_rate_stderr": 1.034678959562589,
        "draws": 3,
    },
    ("truthfulqa_open", "truthfulqa_open/dexperts-70B-helpful-prompt"): {"true_informative": 0.8506731946144431},
    ("truthfulqa_open", "truthfulqa_open/llama2-70B"): {"true_informative": 0.5385556915544676},
    ("truthfulqa_open", "truthfulqa_open/llama2-chat-70B-helpful-prompt"): {"true_informative": 0.795593635250918},
}


@needs_real
@pytest.mark.parametrize(("task", "file"), VERDICT_FIGURES)
def test_published_verdicts_give_the_published_figures(task: str, file: str) -> None:
    """To the last digit."""
    scores = score_outputs(task, "liu2024", FOLDER / f"published/liu2024/{file}.jsonl")
    for name, value in VERDICT_FIGURES[task, file].items():
        assert scores[name] == value


def test_published_predictions_are_parsed_one_by_one(folder: Path) -> None:
    numbers, letters = (
        sorted((folder / "published/liu2024" / kind).glob("*.jsonl")) for kind in ("gsm", "truthfulqa_mc")
    )
    assert numbers and letters
    for row in (row for path in numbers for row in rows_of(path)):
        assert metrics.last_number(metrics.cut(row["model_output"], metrics.NEXT_QUESTION)) == row["prediction"]
    for row in (row for path in letters for row in rows_of(path)):
        assert (metrics.letter(row["mc_output"]) or "") == row["parsed_output"]


@needs_real
def test_truthfulqa_prompts_and_gold_letters_are_the_817_published_ones() -> None:
    task = load_task("truthfulqa_mc_liu2024", FOLDER)
    ours = [(prompt(task, doc), answer(task, doc)) for doc in task.eval_docs]
    published = rows_of(FOLDER / "truthfulqa/liu2024_mc_prompts.jsonl")
    assert ours == [(row["mc_prompt"], row["mc_answer_idx"]) for row in published]
    assert len(ours) == 817


@needs_real
def test_gsm8k_questions_and_gold_numbers_are_the_published_ones() -> None:
    task = load_task("gsm8k_liu2024", FOLDER)
    published = rows_of(FOLDER / "published/liu2024/gsm/llama2-70B.jsonl")
    for doc, row in zip(task.eval_docs, published, strict=True):
        question = row["question"].strip()
        assert prompt(task, doc) == f"Answer the following question.\n\nQuestion: {question}\nAnswer:"
        assert metrics.gsm8k_gold(answer(task, doc)) == row["answer"]


# TruthfulQA


def test_four_options_are_drawn_by_one_generator_over_the_questions_in_order(invented: Path) -> None:
    """random.Random(42): sample(3 false ones, 3), shuffle 4; then sample(1, 1), shuffle 2."""
    task = load_task("truthfulqa_mc_liu2024", invented)
    first, second = task.eval_docs
    assert prompt(task, first) == (
        "Can a stone swim?\nA. Stones fly.\nB. Only at night.\nC. No, it sinks.\nD. Yes.\n\nThe answer is:"
    )
    assert first["answer"] == "C"
    assert sorted(line.partition(" ")[2] for line in second["options"].splitlines()) == ["No.", "Yes."]
    assert second["options"].splitlines()["AB".index(second["answer"])].endswith("Yes.")


def test_open_answers_are_compared_with_true_and_false_ones(invented: Path) -> None:
    task = load_task("truthfulqa_gen_liu2024", invented)
    totals, samples = evaluate(Parrot([" It goes down.", " It is sweet."]), task)
    assert [sample["rougeL_acc"] for sample in samples] == [1.0, 0.0]
    assert totals["rouge1_acc,none"] == totals["rougeL_acc,none"] == 0.5


def test_truthfulqa_of_lm_eval_brings_its_own_examples(invented: Path) -> None:
    with pytest.raises(UserError, match="no split to take examples from"):
        load_task("truthfulqa_mc1_lm_eval", invented, num_fewshot=1)


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


def test_mmlu_examples_are_of_the_items_own_subject(invented: Path) -> None:
    task = load_task("mmlu_fan2024", invented, num_fewshot=2)
    task.build_all_requests()
    texts = {request.args[0] for request in task.instances}
    assert len(texts) == 12
    example = "{0} dev 0?" + OPTIONS + " A\n\n{0} dev 1?" + OPTIONS + " B\n\n"
    subjects = {"Law": "roman_law", "Star": "astronomy", "Rite": "anatomy"}
    for text in texts:
        asked = text.rpartition("\n\n")[2].split()[0]
        heading = subjects[asked].replace("_", " ")
        assert text.startswith(MMLU.replace("roman law", heading) + example.format(subjects[asked]))
        assert text.count("Answer:") == 3


def test_mmlu_wants_as_many_examples_as_a_subject_has(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="num_fewshot=6 is not allowed: abstract_algebra has examples for at most 5"):
        load_task("mmlu_fan2024", mmlu(tmp_path), num_fewshot=6)


class SaysA(Parrot):
    """Finds the letter A likeliest; keeps the items it was asked about."""

    def loglikelihood(self, requests, disable_tqdm=False):
        self.items = [request.doc_id for request in requests]
        return [(-1.0 if request.args[1] == " A" else -2.0, False) for request in requests]


def test_mmlu_micro_and_macro(invented: Path) -> None:
    totals, samples = evaluate(SaysA([]), load_task("mmlu_fan2024", invented))
    assert [sample["acc"] for sample in samples] == [1, 0, 0, 0, 1, 0, 1, 0, 1, 0, 0, 0]
    assert totals["acc,none"] == pytest.approx(4 / 12)
    assert totals["acc_macro,none"] == pytest.approx((2 / 6 + 1 / 2 + 1 / 4) / 3)


def test_a_limit_is_spread_over_the_subjects_of_mmlu_and_items_keep_their_numbers(invented: Path) -> None:
    """Law has items 0-5 (ranks 1/12, 3/12, ...), stars 6 and 7 (1/4, 3/4), rites 8-11 (1/8, 3/8, ...)."""
    chosen = {1: [0], 2: [0, 8], 3: [0, 1, 8], 4: [0, 1, 6, 8], 6: [0, 1, 2, 6, 8, 9], 12: list(range(12))}
    for limit, items in chosen.items():
        task = load_task("mmlu_fan2024", invented)
        totals, samples = evaluate(lm := SaysA([]), task, limit)
        assert [sample["doc_id"] for sample in samples] == items
        assert lm.items == [item for item in items for _ in range(4)]
        assert all(sample["doc"] == task.eval_docs[sample["doc_id"]] for sample in samples)
        right = [item in (0, 4, 6, 8) for item in items]
        assert totals["acc,none"] == pytest.approx(sum(right) / len(items))
    assert data_record(task, [0, 1, 6]).groups == {"roman_law": 2, "astronomy": 1, "anatomy": 0}
    assert data_record(task, [0, 1, 6]).skipped == {"beyond the limit": 9}


def test_a_limit_beyond_the_items_takes_all(invented: Path) -> None:
    assert len(evaluate(SaysA([]), load_task("mmlu_fan2024", invented), 100)[1]) == 12


def test_a_limit_of_a_task_without_groups_takes_the_first_items(invented: Path) -> None:
    _, samples = evaluate(Parrot(["7", "600"]), task := load_task("gsm8k_liu2024", invented), 2)
    assert [sample["doc_id"] for sample in samples] == [0, 1]
    assert not data_record(task, [0, 1]).groups


@given(st.lists(st.sampled_from("aaaaabbbc"), min_size=1, max_size=60), st.integers(1, 60))
def test_a_spread_is_proportional_and_a_larger_one_only_adds_items(groups: list[str], limit: int) -> None:
    items = spread(groups, limit)
    assert items == sorted(set(items)) and len(items) == min(limit, len(groups))
    assert set(items) <= set(spread(groups, limit + 1))
    seats, sizes = Counter(groups[item] for item in items), Counter(groups)
    for group, size in sizes.items():
        numbers = [item for item, other in enumerate(groups) if other == group]
        assert [item for item in items if groups[item] == group] == numbers[: seats[group]]
        for other, its_size in sizes.items():
            # Webster: no seat would be deserved more elsewhere.
            if seats[group]:
                assert (seats[group] - 0.5) / size <= (seats[other] + 0.5) / its_size + 1e-9


@needs_real
def test_a_limit_of_100_reaches_all_57_subjects_of_the_real_mmlu() -> None:
    task = load_task("mmlu_lm_eval", FOLDER)
    items = spread(list(task.eval_docs["subject"]), 100)
    counts = data_record(task, items).groups
    assert len(counts) == 57
    assert sum(counts.values()) == 100
    assert (min(counts.values()), counts["professional_law"]) == (1, 10)


# TriviaQA


TRIVIA = {"question": "Who?", "answer": {"value": "Mark Twain", "aliases": ["Mark Twain", "Samuel Clemens "]}}


def test_triviaqa_takes_any_alias(invented: Path) -> None:
    for answers, scores in (([" ada quill", " OSTLAND"], [1.0, 1.0]), ([" A. Quill.", " Östland"], [0.0, 1.0])):
        _, samples = evaluate(Parrot(answers), load_task("triviaqa_liu2024", invented))
        assert [sample["exact_match"] for sample in samples] == scores


def test_triviaqa_examples_and_training_answer_with_the_preferred_name(invented: Path) -> None:
    evaluate(lm := Parrot(["", ""]), load_task("triviaqa_liu2024", invented, num_fewshot=1))
    assert (
        lm.prompts[0] == "Question: Who drew the map?\nAnswer: Ben Ink\n\nQuestion: Who wrote the blue book?\nAnswer:"
    )
    with pytest.raises(UserError, match="has examples for at most 1"):
        load_task("triviaqa_liu2024", invented, num_fewshot=2)


def test_an_item_that_may_be_among_the_examples_takes_one_of_them(invented: Path, tmp_path: Path) -> None:
    """lm-eval's own TriviaQA says not where examples come from: the item itself is left out of one more."""
    with pytest.raises(UserError, match="has examples for at most 0"):
        load_task("triviaqa_lm_eval", invented, num_fewshot=1)
    rows = [{**TRIVIA, "question": f"Who was {i}?"} for i in range(3)]
    jsonl(tmp_path / "triviaqa/rc.nocontext_validation.jsonl", rows[0])
    jsonl(tmp_path / "triviaqa/rc.nocontext_train.jsonl", *rows)
    evaluate(lm := Parrot([""]), load_task("triviaqa_lm_eval", tmp_path, num_fewshot=2))
    assert sorted(re.findall(r"Who was (\d)", lm.prompts[0])) == ["0", "1", "2"]


# CNN/DailyMail


def test_summaries_by_hand(invented: Path) -> None:
    """Stemmed: mayor open bridg. The first answer has 2 of 3 words and 1 of 2 pairs, the second all."""
    totals, _ = evaluate(Parrot([" The mayor opened it", " It rained"]), load_task("cnn_dailymail_fan2024", invented))
    assert totals["rouge1,none"] == pytest.approx((2 * 2 / (3 + 4) + 1) / 2)
    assert totals["rouge2,none"] == pytest.approx((2 * 1 / (2 + 3) + 1) / 2)
    assert totals["rougeL,none"] == totals["rouge1,none"]


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


def test_any_other_task_of_lm_eval_by_name() -> None:
    assert find("arc_easy").config["dataset_path"] == "allenai/ai2_arc"
    with pytest.raises(UserError, match="is a group of lm-eval"):
        find("mmlu")
    with pytest.raises(UserError, match=r"'arc_easyy'.*arc_easy"):
        find("arc_easyy")
    with pytest.raises(UserError, match="only reads the hub"):
        load_task("arc_easy", data_dir=".")
    with pytest.raises(UserError, match=r"cannot load its data from the hub .* load it once with a network"):
        load_task("arc_easy")


# Outputs made elsewhere


def test_outputs_of_the_other_tasks(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "t.jsonl", {"output": " mark twain", **TRIVIA})
    assert score_outputs("triviaqa", "liu2024", path) == {"task": "triviaqa_liu2024", "n": 1, "exact_match": 1.0}
    path = jsonl(tmp_path / "c.jsonl", {"output": "dog barks", "highlights": "A dog barks"})
    assert score_outputs("cnn_dailymail", "fan2024", path)["rouge2"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("answer", ["Mark Twain", {"names": []}, 3, ["Mark Twain"]])
def test_gold_of_another_shape_is_one_clear_line(answer: Any, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "t.jsonl", {"output": "x", "answer": answer})
    with pytest.raises(UserError, match=r"line 1: answer.* is not allowed; expected: (a JSON|an) object"):
        score_outputs("triviaqa", "liu2024", path)
