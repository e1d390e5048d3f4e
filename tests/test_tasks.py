"""Tasks by name: their YAMLs, data from local files, examples, and outputs that were made elsewhere."""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import yaml
from invented import jsonl
from lm_eval.api.model import LM

from proxytune.cli.schema import TaskConfig
from proxytune.errors import UserError
from proxytune.tasks import (
    TASKS_DIR,
    find,
    full_names,
    load_task,
    registry,
    score_outputs,
    task_info,
    task_manager,
    task_names,
    training_examples,
)
from proxytune.tasks.loading import prompt

GSM8K = {"question": "Two and two?", "answer": "2 + 2 = <<2+2=4>>4\n#### 4"}


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
    for nothing in ([], "gsm8k"):
        with pytest.raises(UserError, match="at least one task"):
            full_names(nothing, "liu2024")


UNSEEN = "miniature_quoted"
"""The task that no model is tuned on."""


def test_every_yaml_is_indexed_and_says_what_an_experiment_needs() -> None:
    assert len(sorted(TASKS_DIR.glob("**/*.yaml"))) == len(task_manager().all_subtasks)
    for name in task_names():
        _, _, config, extras = find(name)
        assert extras.metric in {item["metric"] for item in config["metric_list"]}
        assert extras.files and extras.columns
        assert extras.expert or name == UNSEEN
        splits = {config.get(key) for key in ("training_split", "validation_split", "test_split", "fewshot_split")}
        assert splits - {None} <= set(extras.files)


@pytest.mark.parametrize("path", sorted((TASKS_DIR.parents[1] / "conf" / "task").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_task_config_names_tasks_that_exist(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    assert set(config) <= set(TaskConfig.model_fields)
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
    "our key": ("columns:", "column:", "FILE: unknown key 'metadata.proxytune.column'. Did you mean 'metadata.proxytu"),
    "our value": (
        "{test: own.jsonl}",
        "[own.jsonl]",
        "FILE: metadata.proxytune.files=['own.jsonl'] is not allowed: it is",
    ),
    "kind": (
        "question: text",
        "question: txt",
        "FILE: metadata.proxytune.columns.question: 'txt' is not a kind of col",
    ),
    "index": ("question: text", "question: index of choice", "column ('question' is its index) 'choice'"),
    "no columns": ("    columns: {question: text, answer: text}\n", "", "FILE: metadata.proxytune names files"),
    "no split": ("test_split: test\n", "", "FILE: test_split (or validation_split) is missing"),
    "output_type": ("generate_until", "generate", "output_type in FILE 'generate'. Did you mean 'generate_until'?"),
    "function": ("score_exact", "score_exat", "FILE: Module 'proxytune.tasks.metrics' has no function 'score_exat'"),
    "module": ("tasks.metrics", "tasks.metrcs", "FILE: Cannot import module 'proxytune.tasks.metrcs' for function"),
    "no module": ("proxytune.tasks.metrics.", "", "FILE: Invalid function reference 'score_exact': no module path"),
    "column": ("{{question}}", "{{qestion}}", "FILE: a template cannot be filled in: 'qestion' is undefined"),
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


def test_a_task_with_its_own_metric_is_a_yaml_and_a_function(own_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own_yaml.parent / "own_metric.py").write_text("def score(doc, results):\n    return {'length': len(results[0])}\n")
    monkeypatch.syspath_prepend(str(own_yaml.parent))
    own_yaml.write_text(
        OWN.replace("proxytune.tasks.metrics.score_exact", "own_metric.score").replace("exact_match", "length")
    )
    jsonl(own_yaml.parent / "own.jsonl", GSM8K, GSM8K)
    info = task_info(task := load_task("own", own_yaml.parent))
    totals, _ = evaluate(Parrot(["ab", "abcd"]), task)
    assert totals[f"{info.metric},{info.filter}"] == 3.0


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
    with pytest.raises(UserError, match="there is no folder"):
        load_task("gsm8k_liu2024", tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"there is no file .*gsm8k/test\.jsonl"):
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


def test_questions_that_come_again_are_counted(tmp_path: Path) -> None:
    row = {"question": "Two and two?", "output": " 4", "answer": "#### 4"}
    other = {**row, "question": "Two and three?", "output": " 4", "answer": "#### 5"}
    path = jsonl(tmp_path / "o.jsonl", row, other, row, {**row, "output": " 5"})
    scores = score_outputs("gsm8k", "liu2024", path)
    assert scores == {"task": "gsm8k_liu2024", "n": 4, "repeated_questions": 2, "exact_match": 0.5}
    published = [{"Question": text, "mc_output": " A", "mc_answer_idx": "A"} for text in ("a?", "b?", "a?")]
    scores = score_outputs("truthfulqa_mc", "liu2024", jsonl(tmp_path / "p.jsonl", *published))
    assert scores["repeated_questions"] == 1
    unnamed = [{"output": " A", "answer": "A"}] * 3
    assert "repeated_questions" not in score_outputs("truthfulqa_mc", "liu2024", jsonl(tmp_path / "u.jsonl", *unnamed))


def test_blank_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    write(path := tmp_path / "o.jsonl", b'\n{"output": " A", "answer": "A"}\n \n{"output": " B", "answer": "A"}\n')
    scores = score_outputs("truthfulqa_mc", "liu2024", path)
    assert (scores["n"], scores["blank_lines"], scores["acc"]) == (2, 2, 0.5)


def test_outputs_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*none\.jsonl"):
        score_outputs("gsm8k", "liu2024", tmp_path / "none.jsonl")
    for wrong, style, said in (
        ("gsm", "liu2024", "Did you mean 'gsm8k'"),
        ("mmlu", "fan2024", "'mmlu_fan2024' is not scored from generated text: its YAML names no `outputs:`"),
        ("triviaqa", "lm_eval", "give style=fan2024 or liu2024"),
        ("arc_easy", None, "unknown task to score from text 'arc_easy'"),
    ):
        with pytest.raises(UserError, match=re.escape(said)):
            score_outputs(wrong, style, tmp_path / "none.jsonl")
