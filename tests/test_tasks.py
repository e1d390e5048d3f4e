"""Tasks: prompts equal to the published ones, scores equal to the published figures, data from local files."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.metrics import exact_match_hf_evaluate
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from tiny import tiny_llama, tiny_tokenizer

from proxytune.errors import UserError
from proxytune.tasks import (
    TASKS_DIR,
    full_names,
    load_task,
    metrics,
    registry,
    score_outputs,
    task_info,
    task_manager,
    task_names,
    training_examples,
)
from proxytune.tasks.examples import answer, prompt
from proxytune.tasks.registry import find

DATA = Path(__file__).parents[1].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs the real data in ../shared/data")
GSM8K = {"question": "Two and two?", "answer": "2 + 2 = <<2+2=4>>4\n#### 4"}


def jsonl(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class Parrot(LM):
    """Answers the i-th request with the i-th of `texts`, and keeps the prompts."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__()
        self.texts, self.prompts = texts, []

    def generate_until(self, requests, disable_tqdm=False):
        self.prompts = [request.args[0] for request in requests]
        return self.texts[: len(requests)]

    def loglikelihood(self, requests, disable_tqdm=False):
        raise NotImplementedError

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        raise NotImplementedError


def evaluate(lm: LM, task, limit: int | None = None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """`simple_evaluate` without its survey of the machine, which takes two seconds."""
    task.set_fewshot_seed(0)
    results = lm_eval.evaluate(lm, {"tasks": {task.task_name: task}}, limit=limit, bootstrap_iters=0, log_samples=True)
    return results["results"][task.task_name], results["samples"][task.task_name]


# Published outputs and prompts


PUBLISHED = {
    ("gsm8k", "gsm/dexperts-70B"): {"exact_match": 0.33510235026535257},
    ("gsm8k", "gsm/llama2-70B"): {"exact_match": 0.09628506444275967},
    ("gsm8k", "gsm/llama2-chat-70B"): {"exact_match": 0.5178165276724791},
    ("gsm8k", "gsm/dexperts-gsm-70B"): {"exact_match": 0.5390447308567097},
    ("gsm8k", "gsm/llama2-gsm-70B"): {"exact_match": 0.6785443517816527},
    ("truthfulqa_mc", "truthfulqa_mc/dexperts-70B-helpful-prompt"): {"acc": 0.5919117647058824, "invalid": 1},
    ("truthfulqa_mc", "truthfulqa_mc/llama2-70B"): {"acc": 0.4231311706629055, "invalid": 108},
    ("truthfulqa_mc", "truthfulqa_mc/llama2-chat-70B-helpful-prompt"): {"acc": 0.6825980392156863, "invalid": 1},
}


@needs_data
@pytest.mark.parametrize(("task", "file"), PUBLISHED)
def test_published_outputs_give_the_published_figures(task: str, file: str) -> None:
    path = DATA / "published" / "liu2024" / f"{file}.jsonl"
    n = len(rows_of(path))
    assert score_outputs(task, "liu2024", path) == {"task": f"{task}_liu2024", "n": n, **PUBLISHED[task, file]}


@needs_data
def test_published_predictions_are_parsed_one_by_one() -> None:
    for path in sorted((DATA / "published/liu2024/gsm").glob("*.jsonl")):
        for row in rows_of(path):
            assert metrics.last_number(metrics.cut(row["model_output"], metrics.NEXT_QUESTION)) == row["prediction"]
    for path in sorted((DATA / "published/liu2024/truthfulqa_mc").glob("*.jsonl")):
        for row in rows_of(path):
            assert (metrics.letter(row["mc_output"]) or "") == row["parsed_output"]


@needs_data
def test_truthfulqa_prompts_and_gold_letters_are_the_817_published_ones() -> None:
    task = load_task("truthfulqa_mc_liu2024", DATA)
    ours = [(prompt(task, doc), answer(task, doc)) for doc in task.eval_docs]
    published = rows_of(DATA / "truthfulqa/liu2024_mc_prompts.jsonl")
    assert ours == [(row["mc_prompt"], row["mc_answer_idx"]) for row in published]
    assert len(ours) == 817


@needs_data
def test_gsm8k_questions_and_gold_numbers_are_the_published_ones() -> None:
    task = load_task("gsm8k_liu2024", DATA)
    published = rows_of(DATA / "published/liu2024/gsm/llama2-70B.jsonl")
    for doc, row in zip(task.eval_docs, published, strict=True):
        question = row["question"].strip()
        assert prompt(task, doc) == f"Answer the following question.\n\nQuestion: {question}\nAnswer:"
        assert metrics.gsm8k_gold(answer(task, doc)) == row["answer"]


# Metrics


@given(st.text(string.printable), st.text(string.printable))
def test_exact_match_is_that_of_lm_eval(one: str, other: str) -> None:
    reference = exact_match_hf_evaluate([one], [other], ignore_case=True, ignore_punctuation=True)["exact_match"]
    assert metrics.exact_match(one, other) == reference
    assert metrics.exact_match(one, one.swapcase()) == 1.0


@given(st.integers(0, 10**12), st.text("abc \n$"))
def test_a_number_is_found_behind_thousands_commas(number: int, words: str) -> None:
    assert metrics.last_number(f"7 apples {words}{number:,}.{words}") == str(number)


@pytest.mark.parametrize(
    ("output", "prediction"),
    [
        (" It is 12.", "12"),
        (" 3 then 4\n\nQuestion: What is 5?", "4"),
        (" 3 then 4\nComment: 9", "4"),
        (" 3. Answer the following question. 8", "3"),
        (" costs $1,234,567.50", "1234567.50"),
        (" minus -5", "5"),
        (" minus -5.5", "-5.5"),
        (" none", " none"),
        ("", ""),
    ],
)
def test_gsm8k_prediction(output: str, prediction: str) -> None:
    assert metrics.last_number(metrics.cut(output, metrics.NEXT_QUESTION)) == prediction


@pytest.mark.parametrize(
    ("output", "letter"),
    [
        (" B", "B"),
        ("\n\nC", "C"),
        (" (D", "D"),
        ("\n\n\\begin{blockquote}\n\n A", "A"),
        ("E", None),
        ("", None),
        (" \n", None),
    ],
)
def test_letter(output: str, letter: str | None) -> None:
    assert metrics.letter(output) == letter


@given(st.lists(st.sampled_from([0.0, 1.0, math.nan])))
def test_mean_of_valid_leaves_out_what_has_no_value(values: list[float]) -> None:
    valid = [v for v in values if v == v]
    mean = metrics.mean_of_valid(values)
    assert mean == sum(valid) / len(valid) if valid else math.isnan(mean)


# lm-eval runs them


def test_gsm8k_in_simple_evaluate(tmp_path: Path) -> None:
    jsonl(tmp_path / "gsm8k/test.jsonl", GSM8K, GSM8K, GSM8K)
    lm = Parrot([" It is 4.", " It is 5.\n", " 4 and 5"])
    info = task_info(task := load_task("gsm8k_liu2024", tmp_path))
    results = lm_eval.simple_evaluate(lm, tasks=[task], task_manager=task_manager(), bootstrap_iters=0)
    totals, samples = results["results"]["gsm8k_liu2024"], results["samples"]["gsm8k_liu2024"]
    assert lm.prompts == ["Answer the following question.\n\nQuestion: Two and two?\nAnswer:"] * 3
    assert [sample[info.metric] for sample in samples if sample["filter"] == info.filter] == [1.0, 0.0, 0.0]
    assert totals[f"{info.metric},{info.filter}"] == 1 / 3
    assert samples[0]["arguments"][0][1]["max_gen_toks"] == 512


def test_an_invalid_letter_is_counted_and_left_out(tmp_path: Path) -> None:
    row = {"question": "Which?", "mc1_targets": {"choices": ["This", "That."], "labels": [1, 0]}}
    jsonl(tmp_path / "truthfulqa/multiple_choice_validation.jsonl", row, row, row)
    task = load_task("truthfulqa_mc_liu2024", tmp_path)
    gold = [doc["answer"] for doc in task.eval_docs]
    totals, samples = evaluate(lm := Parrot([f" {gold[0]}", " I cannot say", " C"]), task)
    assert {"A. This.\nB. That.", "A. That.\nB. This."} >= {p.split("\n", 1)[1].split("\n\n")[0] for p in lm.prompts}
    assert totals["acc,none"] == 0.5
    assert totals["invalid,none"] == 1
    assert [sample["invalid"] for sample in samples] == [0, 1, 0]
    assert [sample["acc"] for sample in samples[::2]] == [1.0, 0.0]
    assert math.isnan(samples[1]["acc"])


def test_all_invalid_has_no_accuracy(tmp_path: Path) -> None:
    row = {"question": "Which?", "mc1_targets": {"choices": ["This", "That"], "labels": [1, 0]}}
    jsonl(tmp_path / "truthfulqa/multiple_choice_validation.jsonl", row)
    totals, _ = evaluate(Parrot(["?"]), load_task("truthfulqa_mc_liu2024", tmp_path))
    assert math.isnan(totals["acc,none"])


@needs_data
def test_a_real_model_answers_through_hflm() -> None:
    tokenizer = tiny_tokenizer()
    lm = HFLM(tiny_llama(len(tokenizer), seed=0), tokenizer=tokenizer, max_length=1024, batch_size=2)
    totals, samples = evaluate(lm, load_task("truthfulqa_mc_liu2024", DATA), limit=3)
    again, same = evaluate(lm, load_task("truthfulqa_mc_liu2024", DATA), limit=3)
    assert totals["invalid,none"] == sum(sample["invalid"] for sample in samples)
    assert [sample["resps"] for sample in samples] == [sample["resps"] for sample in same]
    assert len(samples) == again["sample_len"] == 3


def test_every_load_is_a_task_of_its_own(tmp_path: Path) -> None:
    jsonl(tmp_path / "gsm8k/test.jsonl", GSM8K)
    first, second = (load_task("gsm8k_liu2024", tmp_path) for _ in range(2))
    first.build_all_requests()
    first.set_config("num_fewshot", 3)
    second.build_all_requests()
    assert first.instances[0] is not second.instances[0]
    assert second.config.num_fewshot == 0


# Examples in the prompt, and for training


def test_fewshot_examples_come_from_the_training_split(tmp_path: Path) -> None:
    jsonl(tmp_path / "gsm8k/test.jsonl", GSM8K)
    jsonl(
        tmp_path / "gsm8k/train.jsonl",
        {"question": "One?", "answer": "#### 1"},
        {"question": "Two?", "answer": "#### 2"},
    )
    evaluate(lm := Parrot(["4"]), load_task("gsm8k_liu2024", tmp_path, num_fewshot=2))
    (text,) = lm.prompts
    assert text.startswith("Answer the following question.\n\nQuestion: ")
    assert set(re.findall(r"Question: (\w+)\?\nAnswer: #### (\d)\n\n", text)) == {("One", "1"), ("Two", "2")}
    assert text.endswith("\n\nQuestion: Two and two?\nAnswer:")


def test_without_examples_the_training_split_is_not_read(tmp_path: Path) -> None:
    jsonl(tmp_path / "gsm8k/test.jsonl", GSM8K)
    assert load_task("gsm8k_liu2024", tmp_path, num_fewshot=0).config.num_fewshot == 0
    with pytest.raises(UserError, match=r"no file .*train\.jsonl"):
        load_task("gsm8k_liu2024", tmp_path, num_fewshot=1)


def test_fewshot_without_a_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no split to take examples from"):
        load_task("truthfulqa_mc_liu2024", tmp_path, num_fewshot=5)
    with pytest.raises(UserError, match="0 or more"):
        load_task("gsm8k_liu2024", tmp_path, num_fewshot=-1)


def test_training_examples_are_the_evaluation_prompts(tmp_path: Path) -> None:
    jsonl(tmp_path / "gsm8k/train.jsonl", GSM8K)
    ((text, target),) = training_examples("gsm8k_liu2024", tmp_path)
    assert text == "Answer the following question.\n\nQuestion: Two and two?\nAnswer:"
    assert target == " 2 + 2 = <<2+2=4>>4\n#### 4"
    with pytest.raises(UserError, match="no training split"):
        training_examples("truthfulqa_mc_liu2024", tmp_path)


# Names


def test_names_and_styles() -> None:
    assert full_names(["gsm8k"], "liu2024") == ["gsm8k_liu2024"]
    assert full_names(["trivia", "arc_easy"], None) == ["trivia", "arc_easy"]
    with pytest.raises(UserError, match="Did you mean 'liu2024'"):
        full_names(["gsm8k"], "liu2023")
    with pytest.raises(UserError, match="Did you mean 'gsm8k'"):
        full_names(["gsm8"], "liu2024")
    with pytest.raises(UserError, match="at least one task"):
        full_names([], "liu2024")


def test_every_yaml_is_indexed_and_says_what_an_experiment_needs() -> None:
    assert len(sorted(TASKS_DIR.glob("**/*.yaml"))) == len(task_manager().all_subtasks)
    for name in task_names():
        _, _, config, ours = find(name)
        assert ours["metric"] in {item["metric"] for item in config["metric_list"]}
        assert set(ours) >= {"metric", "expert", "files", "columns"}
        splits = {config.get(key) for key in ("training_split", "validation_split", "test_split", "fewshot_split")}
        assert splits - {None} <= set(ours["files"])


@pytest.mark.parametrize("path", sorted((TASKS_DIR.parents[1] / "conf" / "task").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_task_config_names_tasks_that_exist(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    assert set(config) <= {"names", "style", "data_dir"}
    if config["names"] != "???":
        assert set(full_names(config["names"], config.get("style"))) <= set(task_names())


# A task of one's own, and mistakes in its YAML

OWN = """
task: own
dataset_path: json
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: answer
generation_kwargs: {until: ["."]}
process_results: !function proxytune.tasks.metrics.score_exact
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
metadata:
  proxytune:
    metric: exact_match
    files: {test: own.jsonl}
    columns: {question: text, answer: text}
"""
MISTAKES = {
    "YAML": ("task: own", "task: {own", "unknown task 'own'; but FILE is not valid YAML"),
    "key": ("process_", "proces_", "unknown key in FILE 'proces_results'. Did you mean 'process_results'?"),
    "our key": ("columns:", "column:", "key of metadata.proxytune in FILE 'column'. Did you mean 'columns'?"),
    "no columns": ("    columns: {question: text, answer: text}\n", "", "FILE: metadata.proxytune names files"),
    "no split": ("test_split: test\n", "", "FILE: a test_split (or validation_split) is missing"),
    "output_type": ("generate_until", "generate", "output_type in FILE 'generate'. Did you mean 'generate_until'?"),
    "function": ("score_exact", "score_exat", "FILE: Module 'proxytune.tasks.metrics' has no function 'score_exat'."),
    "module": ("tasks.metrics", "tasks.metrcs", "FILE: Cannot import module 'proxytune.tasks.metrcs' for function"),
    "no module": ("proxytune.tasks.metrics.", "", "FILE: Invalid function reference 'score_exact': no module path."),
    "column": ("{{question}}", "{{qestion}}", "FILE: a template cannot be filled in: 'qestion' is undefined."),
    "template": ("{{question}}", "{{question}", "FILE: a template cannot be filled in: "),
    "headline": ("    metric: exact_match", "    metric: acc", "metric of task 'own' (metadata.proxytune.metric"),
    "aggregation": ("mean", "men", "task 'own': the aggregation of metric 'exact_match' in metric_list is not known"),
}


@pytest.fixture
def own_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A task's YAML in a folder of tasks that stands in for the package's."""
    folder = shutil.copytree(TASKS_DIR, tmp_path / "tasks", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    monkeypatch.setattr(registry, "TASKS_DIR", folder)
    registry.task_manager.cache_clear()
    yield folder / "own.yaml"
    registry.task_manager.cache_clear()


def test_a_task_of_ones_own(own_yaml: Path) -> None:
    own_yaml.write_text(OWN)
    jsonl(own_yaml.parent / "own.jsonl", GSM8K)
    assert task_info(task := load_task("own", own_yaml.parent)).metric == "exact_match"
    assert prompt(task, task.eval_docs[0]) == "Two and two?"


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_yaml_is_one_clear_line(mistake: str, own_yaml: Path) -> None:
    right, wrong, message = MISTAKES[mistake]
    assert right in OWN
    own_yaml.write_text(OWN.replace(right, wrong))
    jsonl(own_yaml.parent / "own.jsonl", GSM8K)
    with pytest.raises(UserError, match=re.escape(message.replace("FILE", str(own_yaml)))):
        task_info(load_task("own", own_yaml.parent))


# Data that cannot be read


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


BAD = {
    "empty": (b"", "has no rows"),
    "blank": (b"\n\n", "has no rows"),
    "not json": (b'{"question": "q", "answer": "1"}\n{"question": \n', "line 2 is not JSON"),
    "not utf-8": (b'{"question": "\xff", "answer": "a"}\n', "line 1 is not UTF-8"),
    "utf-16": ('{"question": "q", "answer": "1"}'.encode("utf-16"), "line 1 is not UTF-8"),
    "nested too deep": (b"[" * 100_000 + b"\n", "line 1 is not JSON"),
    "not an object": (b"[1, 2]\n", "line 1 is a list"),
    "no column": (
        b'{"question": "q", "answer": "1"}\n{"question": "q", "reply": "a"}\n',
        "line 2 has no 'answer'; it has",
    ),
    "null": (b'{"question": "q", "answer": null}\n', "line 1 has no 'answer'"),
    "mixed types": (
        b'{"question": "q", "answer": "1"}\n{"question": "q", "answer": ["1"]}\n',
        "line 2: answer = ['1'] is not allowed; expected: a valid string",
    ),
    "no number": (
        b'{"question": "q", "answer": "#### ?"}\n',
        "line 1: answer = '#### ?' is not allowed; expected: a number",
    ),
    "lone surrogate": (b'{"question": "\\ud800", "answer": "1"}\n', "line 1: question = '\\ud800' is not allowed"),
    "key twice": (
        b'{"question": "q", "answer": "1", "answer": "2"}\n',
        "line 1 is not JSON: the key 'answer' stands twice",
    ),
    "nan": (b'{"question": "q", "answer": NaN}\n', "line 1 is not JSON: NaN"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_one_clear_line(case: str, tmp_path: Path) -> None:
    content, message = BAD[case]
    write(path := tmp_path / "gsm8k/test.jsonl", content)
    with pytest.raises(UserError, match=re.escape(str(path))) as error:
        load_task("gsm8k_liu2024", tmp_path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_no_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        load_task("gsm8k_liu2024", tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no file .*gsm8k/test\.jsonl"):
        load_task("gsm8k_liu2024", tmp_path)


def test_the_hub_that_cannot_be_reached_is_one_clear_line() -> None:
    with pytest.raises(UserError, match=r"task\.data_dir=PATH"):
        load_task("gsm8k_liu2024")


def test_an_excerpt_stands_for_its_file_if_it_is_the_only_one(tmp_path: Path) -> None:
    jsonl(tmp_path / "gsm8k/test_1.jsonl", GSM8K)
    assert len(load_task("gsm8k_liu2024", tmp_path).eval_docs) == 1
    jsonl(tmp_path / "gsm8k/test_2.jsonl", GSM8K, GSM8K)
    with pytest.raises(UserError, match=r"test_1\.jsonl, test_2\.jsonl"):
        load_task("gsm8k_liu2024", tmp_path)


def test_changed_data_under_the_same_name_is_read_anew_and_nothing_is_written(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "gsm8k/test.jsonl", GSM8K)
    stamp = path.stat()
    assert load_task("gsm8k_liu2024", tmp_path).eval_docs[0]["question"] == "Two and two?"
    jsonl(path, {**GSM8K, "question": "Six and six"})  # the same size
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # and the same time
    assert load_task("gsm8k_liu2024", tmp_path).eval_docs[0]["question"] == "Six and six"
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]


# Outputs made elsewhere


def test_outputs_are_scored_without_a_word_of_lm_eval(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    score_outputs("gsm8k", "liu2024", jsonl(tmp_path / "o.jsonl", {"output": "4", "answer": "#### 4"}))
    assert not caplog.records


def test_outputs_under_our_own_column_names(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "o.jsonl", {"output": " A", "answer": "A"}, {"output": "?", "answer": "B"})
    scores = score_outputs("truthfulqa_mc", "liu2024", path)
    assert scores == {"task": "truthfulqa_mc_liu2024", "n": 2, "acc": 1.0, "invalid": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no rows"),
        (b'{"output": "A", "answer": "A"}\nnot json\n', "line 2 is not JSON"),
        (
            b'{"output": "A", "answer": "A"}\n{"text": "A", "answer": "B"}\n',
            "line 2 has no 'output' or 'mc_output'; it has 'text', 'answer'",
        ),
        (b'{"output": 3, "answer": "A"}\n', "line 1: output = 3 is not allowed; expected: a valid string"),
        (b'\n{"output": "A", "answer": "E"}\n', "line 2: answer = 'E' is not allowed; expected: 'A', 'B', 'C' or 'D'"),
    ],
)
def test_bad_outputs(content: bytes, message: str, tmp_path: Path) -> None:
    write(path := tmp_path / "o.jsonl", content)
    with pytest.raises(UserError, match=re.escape(message)):
        score_outputs("truthfulqa_mc", "liu2024", path)


def test_outputs_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*none\.jsonl"):
        score_outputs("gsm8k", "liu2024", tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="Did you mean 'gsm8k'"):
        score_outputs("gsm", "liu2024", tmp_path / "none.jsonl")
