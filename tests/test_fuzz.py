"""Whatever a configuration or a data file holds: a UserError that says where, or it is used and counted."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lm_eval.api.model import LM
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from proxytune import experiment, folders
from proxytune.cli import main, run
from proxytune.errors import UserError
from proxytune.experiment.arms import resolve
from proxytune.models import FamilySpec
from proxytune.record import Record
from proxytune.reporting.papers import paper_tables, render
from proxytune.tasks import data_record, load_task, score_outputs

FUZZ = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
TEXT = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["", " ", "${", "${seed}", "${oc.env:HOME}", "???", "{x}", "%s", "a\0b", "é\u2028", "\ud800", "9" * 30]
    ),
)
NUMBER = st.one_of(st.integers(), st.floats(), st.sampled_from([0, -1, 10**30, math.nan, math.inf]))
PLAIN = st.one_of(st.none(), st.booleans(), NUMBER, TEXT)
VALUE = st.recursive(
    PLAIN, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)), max_leaves=6
)


# --- configurations ---------------------------------------------------------------------------------------------------


LOCAL = ["models=local", "task=gsm8k", "models.base.path=a", "models.antiexpert.path=b"]


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    """A whole configuration over the local family, as a file would hold it."""
    overrides = [*LOCAL, "+models.experts.gsm8k={path: b, adapter: c}", "output=out", "store=null"]
    with initialize_config_dir(str(folders.config_dir()), version_base="1.3"):
        values = OmegaConf.to_container(compose("run", overrides), resolve=True)
    assert isinstance(values, dict)
    return values  # type: ignore[return-value]


def _places(node: Any, path: tuple = ()) -> Iterator[tuple]:
    yield path
    if isinstance(node, dict):
        for key, child in node.items():
            yield from _places(child, (*path, key))


PLAUSIBLE = [
    None,
    True,
    0,
    1,
    2,
    0.5,
    -1.0,
    [],
    [0.5, 1],
    ["gsm8k"],
    "all",
    "own",
    "base",
    "tuned",
    "b",
    {},
    {"path": "b"},
]


@settings(FUZZ, max_examples=400)
@given(data=st.data())
def test_a_configuration_is_understood_or_refused(config: dict[str, Any], data: st.DataObject) -> None:
    values = copy.deepcopy(config)
    *path, last = data.draw(st.sampled_from([place for place in _places(config) if place]))
    parent = values
    for key in path:
        parent = parent[key]
    how = data.draw(st.sampled_from(["anything", "another's", "another's", "known", "more", "less"]))
    if how == "less":
        del parent[last]
    elif how == "more" and isinstance(parent[last], dict):
        parent[last][data.draw(TEXT)] = data.draw(VALUE)
    elif how == "another's":
        parent[last] = _at(config, data.draw(st.sampled_from(list(_places(config)))))
    else:
        parent[last] = data.draw(st.sampled_from(PLAUSIBLE) if how == "known" else VALUE)
    try:
        made = OmegaConf.create(values)
    except OmegaConfBaseException:  # no file can hold it
        return
    try:
        wanted = run.prepare(made)
        resolve(wanted.arms, FamilySpec.of(run.build.build(wanted.settings.models)), wanted.tasks[0], "gsm8k")
    except UserError as error:
        assert "\n" not in str(error).strip()


def _at(node: Any, path: tuple) -> Any:
    for key in path:
        node = node[key]
    return copy.deepcopy(node)


KEYS = ["limit", "seed", "only", "task.names", "task.data_dir", "arms.proxy.rule.weights", "arms.dynamic.rule.low"]
KEYS += [
    "+arms.new",
    "arms.proxy.experts",
    "arms",
    "task",
    "models",
    "engine.batch_size",
    "miniature.seed",
    "~arms.proxy",
]


@settings(FUZZ, max_examples=80)
@given(
    key=st.one_of(st.sampled_from(KEYS), st.sampled_from(KEYS), TEXT),
    sign=st.sampled_from(["=", "=", "=", ""]),
    value=st.one_of(TEXT, VALUE.map(json.dumps), st.sampled_from(PLAUSIBLE).map(json.dumps)),
)
def test_an_argument_is_understood_or_refused(
    key: str, sign: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "output" in key or "hydra" in key or key.startswith("-"):
        return
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiment, "run", lambda *_, **__: Record(tasks={}))
    status = main(["run", *LOCAL, "output=out", f"{key}{sign}{value}"])
    said = capsys.readouterr().err
    assert status == (1 if said else 0)
    assert said.count("\n") <= 1
    assert not said or said.startswith("proxytune: ")


# --- data -------------------------------------------------------------------------------------------------------------

TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "gsm8k_liu2024": ("gsm8k/test.jsonl", {"question": "1 + 1?", "answer": "#### 2"}),
    "gsm8k_lm_eval": ("gsm8k/test.jsonl", {"question": "1 + 1?", "answer": "#### 2"}),
    "triviaqa_liu2024": (
        "triviaqa/rc.nocontext_validation.jsonl",
        {"question": "Who?", "answer": {"value": "Ann", "aliases": ["Ann", "A."]}},
    ),
    "truthfulqa_mc_liu2024": (
        "truthfulqa/multiple_choice_validation.jsonl",
        {"question": "Why?", "mc1_targets": {"choices": ["So", "No", "Yes"], "labels": [1, 0, 0]}},
    ),
    "truthfulqa_mc2_lm_eval": (
        "truthfulqa/multiple_choice_validation.jsonl",
        {
            "question": "Why?",
            "mc1_targets": {"choices": ["So", "No"], "labels": [1, 0]},
            "mc2_targets": {"choices": ["So", "Or so", "No"], "labels": [1, 1, 0]},
        },
    ),
    "truthfulqa_gen_liu2024": (
        "truthfulqa/generation_validation.jsonl",
        {"question": "Why?", "best_answer": "So", "correct_answers": ["So"], "incorrect_answers": ["No"]},
    ),
    "cnn_dailymail_fan2024": ("cnn_dailymail/test.jsonl", {"article": "It rained.", "highlights": "Rain."}),
    "mmlu_fan2024": (
        "mmlu/test.jsonl",
        {"question": "Which?", "subject": "art", "choices": ["a", "b", "c", "d"], "answer": 2},
    ),
    "miniature_tqa": ("tqa/test.jsonl", {"question": "Which?", "choices": ["a", "b"], "label": 1}),
}


class Anything(LM):
    """Answers with given texts, and finds the first choice likeliest."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__()
        self.texts = texts

    def generate_until(self, requests, disable_tqdm=False):
        return [self.texts[i % len(self.texts)] for i in range(len(requests))]

    def loglikelihood(self, requests, disable_tqdm=False):
        return [(-1.0 - request.idx, False) for request in requests]

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        raise NotImplementedError


@st.composite
def rows(draw: st.DrawFn, sound: dict[str, Any]) -> str:
    """A line of a data file: a sound row, one with a part replaced, added or left out, or anything."""
    kind = draw(st.sampled_from(["sound", "text", "part", "part", "part", "more", "less", "json", "raw", "blank"]))
    row = copy.deepcopy(sound)
    if kind == "text":
        row = _with_texts(row, draw(st.lists(st.text(max_size=20), min_size=1, max_size=4)))
    elif kind == "raw":
        return draw(st.text(max_size=20).filter(lambda text: "\n" not in text))
    elif kind == "blank":
        return draw(st.sampled_from(["", "  ", "\t"]))
    elif kind == "json":
        row = draw(VALUE)
    elif kind == "more":
        row[draw(TEXT)] = draw(VALUE)
    elif kind != "sound":
        *path, last = draw(st.sampled_from([place for place in _places(sound) if place]))
        parent = row
        for key in path:
            parent = parent[key]
        if kind == "less":
            del parent[last]
        else:
            parent[last] = draw(VALUE)
    return json.dumps(row, ensure_ascii=draw(st.booleans()))


def _with_texts(node: Any, texts: list[str]) -> Any:
    """Every text followed by one of `texts`, so that numbers and names stay what they are."""
    if isinstance(node, dict):
        return {key: _with_texts(child, texts[::-1]) for key, child in node.items()}
    if isinstance(node, list):
        return [_with_texts(child, texts) for child in node]
    return f"{texts[0]}{node}" if isinstance(node, str) else node


@pytest.mark.parametrize("name", TASKS)
@settings(FUZZ, max_examples=120)
@given(data=st.data())
def test_a_row_is_evaluated_or_named(name: str, data: st.DataObject, tmp_path: Path) -> None:
    file, sound = TASKS[name]
    lines = data.draw(st.lists(rows(sound), min_size=1, max_size=4))
    text = data.draw(st.sampled_from(["\n", "\r\n"])).join(lines) + data.draw(st.sampled_from(["", "\n"]))
    content = text.encode("utf-8", data.draw(st.sampled_from(["replace", "surrogatepass"])))
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data.draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + content)
    answers = data.draw(st.lists(st.text(max_size=20), min_size=1, max_size=3))
    try:
        task = load_task(name, tmp_path, num_fewshot=0)
    except UserError as error:
        assert str(path) in str(error)
        assert ", line " in str(error) or "no rows" in str(error)
        return
    results = lm_eval.evaluate(
        Anything(answers), {"tasks": {task.task_name: task}}, bootstrap_iters=0, log_samples=True, limit=2
    )
    items = sorted({sample["doc_id"] for sample in results["samples"][task.task_name]})
    n = len(items)
    record = data_record(task, items)
    blank = sum(not line.strip() for line in content.removesuffix(b"\n").split(b"\n"))
    assert record.read == len(content.removesuffix(b"\n").split(b"\n"))
    assert record.read - sum(record.skipped.values()) == n
    assert record.skipped.get("blank lines", 0) == blank
    assert n == min(2, record.read - blank)


HUGE = "word " * 200_000


def test_a_huge_item_is_evaluated(tmp_path: Path) -> None:
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k/test.jsonl").write_text(json.dumps({"question": HUGE, "answer": "1"}))
    task = load_task("gsm8k_liu2024", tmp_path)
    assert HUGE.strip() in task.fewshot_context(task.eval_docs[0], num_fewshot=0)


# --- outputs and results made elsewhere -------------------------------------------------------------------------------

OUTPUTS = {
    "gsm8k": {"output": "It is 2.", "answer": "2"},
    "truthfulqa_mc": {"output": " A", "answer": "A"},
    "triviaqa": {"output": "Ann", "answer": {"aliases": ["Ann"]}},
}


@pytest.mark.parametrize("task", OUTPUTS)
@settings(FUZZ, max_examples=100)
@given(data=st.data())
def test_an_output_is_scored_or_named(task: str, data: st.DataObject, tmp_path: Path) -> None:
    lines = data.draw(st.lists(rows(OUTPUTS[task]), min_size=1, max_size=4))
    path = tmp_path / "o.jsonl"
    path.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass"))
    try:
        result = score_outputs(task, "liu2024", path)
    except UserError as error:
        assert f"{path}, line " in str(error) or "no rows" in str(error)
    else:
        assert result["n"] + result.get("blank_lines", 0) == len(lines)


@settings(FUZZ, max_examples=100)
@given(data=st.data())
def test_a_results_file_is_shown_or_refused(data: st.DataObject, tmp_path: Path) -> None:
    answer = {"value": 0.5, "stderr": None}
    record = {
        "tasks": {
            "gsm8k_liu2024": {
                "metric": "acc",
                "higher_is_better": True,
                "n": 4,
                "arms": {"base": dict(answer), "proxy": dict(answer)},
            }
        },
        "provenance": {"config": {"experiment": "liu2024_gsm8k_13b"}},
    }
    *path, last = data.draw(st.sampled_from([place for place in _places(record) if place]))
    parent: Any = record
    for key in path:
        parent = parent[key]
    parent[last] = data.draw(VALUE)
    (tmp_path / "results.json").write_text(json.dumps(record))
    try:
        assert render(paper_tables("liu2024", [tmp_path]), "markdown")
    except UserError as error:
        assert "results.json" in str(error) or "experiment" in str(error)
