"""Whole runs over tiny models on disk with the real lm-eval: the record, the items, and what is refused."""

import json
import logging
import re
import shutil
import sys
import warnings
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from lm_eval.tasks import TaskManager
from scipy import stats

from proxytune.engines.hf import HFEngine
from proxytune.engines.requests import GenerateRequest, Prompt
from proxytune.errors import UserError
from proxytune.experiment import run
from proxytune.experiment.answers import shared
from proxytune.experiment.arm_spec import arm_specs
from proxytune.experiment.arms import TaskArms, resolve
from proxytune.experiment.runner import LoadedModels
from proxytune.fusion import Static
from proxytune.fusion.arm import Arm
from proxytune.fusion.contrastive import Contrastive
from proxytune.fusion.plausible import Plausible
from proxytune.models import FamilySpec, load
from proxytune.progress import Progress
from proxytune.record import read_record
from proxytune.reporting import compare, tabulate
from proxytune.tasks import registry

N = 24
ARMS = {
    "base": {"model": "base"},
    "expert": {"model": "expert"},
    "tuned": {"model": "tuned"},
    "proxy": {"rule": Static(1.0), "experts": "own"},
    "nothing": {"rule": Static(0.0), "experts": "own"},
    "all": {"rule": Static((0.5, 1.5)), "experts": "all"},
}
OPEN = """
task: open
dataset_path: json
test_split: test
output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: answer
generation_kwargs: {until: ["\\n"], max_gen_toks: 5, do_sample: false, temperature: 0.0}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
metadata:
  version: 1.0
  proxytune: {metric: exact_match, expert: trivia, files: {test: open.jsonl}, columns: {question: text, answer: text}}
"""
CHOICE = """
task: choice
dataset_path: json
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: gold
target_delimiter: ""
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
metadata:
  version: 1.0
  proxytune: {metric: acc, expert: math, files: {test: choice.jsonl},
    columns: {question: text, choices: texts, gold: index of choices}}
"""
UNSEEN = OPEN.replace("task: open", "task: unseen").replace(", expert: trivia", "")
MUTUAL = CHOICE.replace("task: choice", "task: mutual").replace("metric: acc_norm", "metric: acc_mutual_info")
GROUPED = CHOICE.replace("task: choice", "task: grouped").replace("gold: index", "subject: text, gold: index")
GROUPED = GROUPED.replace("choice.jsonl", "grouped.jsonl")
JUDGED = OPEN.replace("task: open", "task: judged").replace(
    "metric_list:", "process_results: !function judge.score\nmetric_list:"
)
JUDGE = """
def score(doc, results):
    return {"exact_match": float("nan") if "e" in results[0] else float(results[0] == doc["answer"])}

def ratio(doc, results):
    return {"exact_match": (-0.1, 1)}
"""
PAIRED = (
    JUDGED.replace("task: judged", "task: paired")
    .replace("judge.score", "judge.ratio")
    .replace("aggregation: mean", "aggregation: weighted_perplexity")
)


@pytest.fixture(scope="module")
def spec(family_folders) -> FamilySpec:
    def named(kind: str) -> dict[str, str]:
        return {r.partition(":")[2]: str(path) for r, path in family_folders.items() if r.startswith(kind)}

    return FamilySpec(
        base=str(family_folders["base"]),
        antiexpert=str(family_folders["antiexpert"]),
        experts=named("expert:"),
        tuned=named("tuned:"),
    )


@pytest.fixture(scope="module")
def answers(spec) -> dict[str, list[str]]:
    """What base and tuned say to the questions of the open task."""
    ensemble = load(spec, ["base", "tuned:trivia"])
    prompts = [ensemble.tokenizer.encode(f"Question: {_question(i)}\nAnswer:") for i in range(N)]
    requests = [GenerateRequest(Prompt(tuple(prompt)), 5, until=("\n",)) for prompt in prompts]
    said: dict[str, list[str]] = {"base": [""] * N, "tuned:trivia": [""] * N}
    for i, name, answer in HFEngine(ensemble).generate(requests, [Arm(role, base=role) for role in said]):
        said[name][i] = answer.text
    return said


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory, answers) -> Path:
    """An open task whose answers are the tuned model's on three items in four, the base's on every eighth."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for i in range(N):
        answer = answers["base"][i] if i % 8 == 3 else "nothing" if i % 4 == 3 else answers["tuned:trivia"][i]
        rows.append({"question": _question(i), "answer": answer})
    _write(folder / "open.jsonl", rows)
    choices = [" 12 apples", " the sea", " London"]
    _write(folder / "choice.jsonl", [{"question": _question(i), "choices": choices, "gold": i % 3} for i in range(N)])
    return folder


def _question(i: int) -> str:
    return f"how many coins are left of {i}?"


def _write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(autouse=True)
def our_tasks(tmp_path_factory: pytest.TempPathFactory, monkeypatch):
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "judge.py").write_text(JUDGE)
    tasks = {
        "open": OPEN,
        "choice": CHOICE,
        "mutual": MUTUAL,
        "grouped": GROUPED,
        "judged": JUDGED,
        "paired": PAIRED,
        "unseen": UNSEEN,
    }
    for name, text in tasks.items():
        (folder / f"{name}.yaml").write_text(text)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    monkeypatch.setattr(registry, "task_manager", lambda: manager)
    # The scan of lm-eval's thousands of tasks takes long.
    monkeypatch.setattr(registry, "_all_of_lm_eval", lambda: manager)


@pytest.fixture
def go(spec, data_dir, tmp_path):
    def go(tasks=("open",), arms=ARMS, family=spec, engine_factory=HFEngine, **options):
        """What is in the results.json of the run."""
        options = {"output_dir": tmp_path / "out", "data_dir": data_dir} | options
        record = run(family, list(tasks), arms, engine_factory, **options)
        assert record == read_record(options["output_dir"])
        return json.loads((options["output_dir"] / "results.json").read_text())

    return go


def resolved(arms, *where):
    return resolve(arm_specs(arms), *where)


def _rows(folder: Path, task: str) -> list[dict]:
    return [json.loads(line) for line in (folder / "items" / f"{task}.jsonl").read_text().splitlines()]


def test_a_run_records_every_arm_with_its_error_and_the_gap_closed(go, tmp_path, answers):
    record = go(["open", "choice"], config={"seed": 0})
    assert record["format"] == 1
    task = record["tasks"]["open"]
    assert {k: task[k] for k in ("metric", "higher_is_better", "expert", "n", "n_truncated", "missing")} == {
        "metric": "exact_match",
        "higher_is_better": True,
        "expert": "trivia",
        "n": N,
        "n_truncated": 0,
        "missing": {},
    }
    assert task["references"] == {"base": "base", "expert": "expert", "tuned": "tuned"}
    rows = _rows(tmp_path / "out", "open")
    values = {arm: np.array([row["arms"][arm]["exact_match"] for row in rows]) for arm in ARMS}
    assert values["base"].sum() == 3
    assert values["tuned"].sum() == 18
    for arm, entry in task["arms"].items():
        assert entry["value"] == pytest.approx(values[arm].mean())
        low, high = stats.binomtest(int(values[arm].sum()), N).proportion_ci(method="wilson")
        assert entry["interval"] == [pytest.approx(low, abs=1e-12), pytest.approx(high)]
        wilson = (high - low) / 2 / stats.norm.ppf(0.975)
        assert entry["stderr"] == pytest.approx(stats.sem(values[arm]) or wilson)
        assert entry["gap_closed"] == pytest.approx(
            (values[arm].mean() - values["base"].mean()) / (values["tuned"].mean() - values["base"].mean())
        )
        low, high = entry["gap_closed_ci"]
        assert low <= entry["gap_closed"] <= high
        assert entry["relative_performance"] == pytest.approx(values[arm].mean() / values["tuned"].mean())
        assert entry["undefined"] == {}
        assert entry["metrics"] == {"exact_match": pytest.approx(values[arm].mean())}
        for reference in ("base", "expert", "tuned"):
            difference = values[arm] - values[reference]
            assert entry["differences"][reference]["value"] == pytest.approx(difference.mean())
            error = stats.sem(difference)
            if reference == arm:
                assert entry["differences"][reference]["stderr_method"] == "exact"
            elif error == 0:  # Agresti and Min's, of pairs that are all alike
                assert entry["differences"][reference]["stderr_method"] == "agresti-min"
                error = 1 / (N + 2)
            assert entry["differences"][reference]["stderr"] == pytest.approx(error)
    assert task["arms"]["tuned"]["gap_closed"] == 1.0
    assert [row["arms"]["base"]["output"] for row in rows] == answers["base"]
    assert [row["arms"]["tuned"]["output"] for row in rows] == answers["tuned:trivia"]


def _write_clustered(folder):
    """Rows of five subjects, and the same with every question four times."""
    folder.mkdir()
    choices = [" 12 apples", " the sea", " London"]
    rows = [{"question": _question(i), "subject": f"s{i % 5}", "choices": choices, "gold": i % 3} for i in range(N)]
    _write(folder / "grouped.jsonl", rows)
    _write(folder / "choice.jsonl", [row | {"question": _question(i // 4)} for i, row in enumerate(rows)])


def test_items_of_a_subject_and_repeated_prompts_are_clustered_and_said(go, tmp_path):
    _write_clustered(tmp_path / "data")
    tasks = go(["grouped", "choice"], data_dir=tmp_path / "data")["tasks"]
    for task, by, of in (("grouped", "subject", lambda i: i % 5), ("choice", "prompt", lambda i: i // 4)):
        assert (tasks[task]["grouped_by"], tasks[task]["n_groups"]) == (by, len({of(i) for i in range(N)}))
        values = np.array([row["arms"]["base"]["acc"] for row in _rows(tmp_path / "out", task)])
        sums = [
            sum(values[i] - values.mean() for i in range(N) if of(i) == group) for group in {of(i) for i in range(N)}
        ]
        expected = np.sqrt(len(sums) / (len(sums) - 1) * np.sum(np.square(sums))) / N
        base = tasks[task]["arms"]["base"]
        assert base["stderr"] == pytest.approx(expected)
        assert base["stderr_method"] == "clustered"
    remarks = tabulate(read_record(tmp_path / "out")).remarks
    assert "grouped: errors and intervals are clustered by subject (5 groups)." in remarks
    assert go(["open"])["tasks"]["open"]["grouped_by"] is None


def test_compare_finds_the_differences_that_a_record_has(go, tmp_path):
    """An arm of one run against that of another, as two arms of one run: grouped by subject, by prompt, and not."""
    _write_clustered(tmp_path / "data")
    tasks = ["grouped", "choice"]
    together = go(tasks, arms={arm: ARMS[arm] for arm in ("base", "tuned", "expert")}, data_dir=tmp_path / "data")
    assert {task["grouped_by"] for task in together["tasks"].values()} == {"subject", "prompt"}
    for name in ("base", "tuned"):
        go(tasks, arms={"one": ARMS[name]}, data_dir=tmp_path / "data", output_dir=tmp_path / name)
    for task in tasks:
        entry = read_record(tmp_path / "base").tasks[task]
        items = (compare.items_of(tmp_path / name, task) for name in ("base", "tuned"))
        found = compare.difference(entry, *items, "one")
        assert found.stderr_method == "clustered"
        assert found.model_dump() == together["tasks"][task]["arms"]["tuned"]["differences"]["base"]


def test_three_right_answers_are_not_certain(go):
    task = go(limit=3)["tasks"]["open"]["arms"]
    assert [task[arm]["value"] for arm in ("base", "tuned")] == [0.0, 1.0]
    low, high = stats.binomtest(3, 3).proportion_ci(method="wilson")
    assert task["tuned"]["interval"] == [pytest.approx(low), pytest.approx(high)]
    assert task["tuned"]["stderr"] == pytest.approx((high - low) / 2 / stats.norm.ppf(0.975))
    assert (task["base"]["stderr_method"], task["tuned"]["gap_closed_ci"]) == ("wilson", [1.0, 1.0])
    assert task["nothing"]["gap_closed_ci_method"] == "agresti-min"
    assert task["nothing"]["gap_closed_ci"][1] == pytest.approx(stats.norm.ppf(0.975) / 5)


def test_items_hold_prompt_target_outputs_and_the_weights_of_every_token(go, tmp_path):
    record = go(["open", "choice"])
    row = _rows(tmp_path / "out", "open")[1]
    assert (row["doc_id"], row["prompt"]) == (1, f"Question: {_question(1)}\nAnswer:")
    assert row["target"] == row["arms"]["tuned"]["output"] == row["arms"]["tuned"]["answer"]
    assert row["arms"]["base"]["weights"] is None
    assert row["arms"]["nothing"]["output"] == row["arms"]["base"]["output"]
    [weights] = row["arms"]["all"]["weights"]["trivia"]
    assert set(weights) == {1.5}
    assert len(weights) <= 5
    choice = _rows(tmp_path / "out", "choice")[2]
    assert choice["choices"] == [" 12 apples", " the sea", " London"]
    assert choice["target"] == 2
    outputs = {arm: choice["arms"][arm]["output"] for arm in ARMS}
    assert all(len(logprobs) == 3 and max(logprobs) < 0 for logprobs in outputs.values())
    assert choice["arms"]["base"]["acc"] == float(np.argmax(outputs["base"]) == 2)
    assert [len(w) for w in choice["arms"]["proxy"]["weights"]["math"]] == [
        len(w) for w in choice["arms"]["all"]["weights"]["math"]
    ]
    arms = record["tasks"]["choice"]["arms"]
    assert arms["all"]["weights"] == {"math": {"mean": 0.5, "sd": 0.0}, "trivia": {"mean": 1.5, "sd": 0.0}}
    assert arms["base"]["weights"] == {}
    assert set(arms["base"]["metrics"]) == {"acc", "acc_norm"}
    assert arms["proxy"]["roles"] == ["base", "expert:math", "antiexpert"]
    assert arms["proxy"]["rule"]["id"] == "static"
    assert arms["proxy"]["rule"]["parameters"] == {"weights": 1.0}


def test_provenance_says_what_was_run_and_on_what(go, spec):
    record = go(config={"nested": {"alpha": 0.0}}, seed=0, limit=2)["provenance"]
    assert (record["config"], record["seed"], record["limit"]) == ({"nested": {"alpha": 0.0}}, 0, 2)
    assert set(record["members"]) == {"base", "antiexpert", "expert:math", "expert:trivia", "tuned:trivia"}
    assert record["members"]["base"]["source"]["path"] == spec.base.path
    assert record["members"]["base"]["identity"] != record["members"]["antiexpert"]["identity"]
    assert record["members"]["base"]["dtype"] == "float32"
    assert {"version", "commit", "source"} == set(record["code"])
    assert {"python", "torch", "transformers", "lm-eval"} <= set(record["libraries"])
    assert record["timings"]["answers"] == {"open": {"computed": 12, "from_store": 0}}
    assert record["timings"]["batch_size"] == {"open": 32}
    costs = record["timings"]["costs"]["open"]
    assert set(costs["arms"]) == set(ARMS) and set(costs["members"]) == set(record["members"])
    assert costs["arms"]["proxy"]["seconds"] > costs["arms"]["base"]["seconds"] > 0


def test_limit_takes_the_first_items(go, tmp_path):
    assert go(limit=3)["tasks"]["open"]["n"] == 3
    assert [row["doc_id"] for row in _rows(tmp_path / "out", "open")] == [0, 1, 2]


def test_only_chooses_arms_and_the_gap_then_says_what_it_lacks(go):
    arms = go(only=["base", "proxy"])["tasks"]["open"]["arms"]
    assert list(arms) == ["base", "proxy"]
    assert arms["proxy"]["gap_closed"] is None
    assert arms["proxy"]["undefined"]["gap_closed"] == "no arm is the tuned model alone"
    assert arms["proxy"]["undefined"]["relative_performance"] == "no arm is the tuned model alone"
    assert arms["proxy"]["differences"].keys() == {"base"}


def test_without_a_base_arm_relative_performance_still_stands(go):
    arm = go(only=["tuned", "proxy"])["tasks"]["open"]["arms"]["tuned"]
    assert (arm["gap_closed"], arm["relative_performance"]) == (None, 1.0)
    assert arm["undefined"]["gap_closed"] == "no arm is the base model alone"


def test_a_task_without_a_tuned_model_has_no_gap_and_says_so(go, spec):
    family = FamilySpec(spec.base, spec.antiexpert, spec.experts)
    task = go(family=family)["tasks"]["open"]
    assert task["missing"] == {"tuned": "the family has no tuned model for task 'open'"}
    assert "tuned" not in task["arms"]
    assert task["arms"]["proxy"]["undefined"]["gap_closed"] == "the family has no tuned model for task 'open'"


def test_one_item_has_no_standard_error_and_no_gap(go):
    arm = go(limit=1)["tasks"]["open"]["arms"]["tuned"]
    assert (arm["value"], arm["stderr"], arm["gap_closed"]) == (1.0, None, None)
    assert arm["undefined"]["stderr"] == "fewer than two valid items"
    assert "single item" in arm["undefined"]["gap_closed"]


def test_invalid_items_are_left_out_counted_and_null_in_the_items(go, tmp_path):
    (tmp_path / "data").mkdir()
    _write(tmp_path / "data" / "open.jsonl", [{"question": _question(i), "answer": "x"} for i in range(N)])
    arms = go(["judged"], data_dir=tmp_path / "data")["tasks"]["judged"]["arms"]
    rows = _rows(tmp_path / "out", "judged")
    invalid = [row["arms"]["base"]["exact_match"] is None for row in rows]
    assert invalid == ["e" in row["arms"]["base"]["output"] for row in rows]
    assert arms["base"]["n_invalid"] == sum(invalid) > 0
    assert arms["base"]["n"] == N - sum(invalid)
    assert arms["base"]["metrics"] == {"exact_match": None}


def test_each_expert_makes_an_arm_of_every_expert(go):
    arms = {"expert": {"model": "expert"}, "any": {"model": "each_expert"}}
    task = go(arms=arms)["tasks"]["open"]
    assert list(task["arms"]) == ["expert", "expert:math", "expert:trivia"]
    assert task["arms"]["expert"]["value"] == task["arms"]["expert:trivia"]["value"]
    assert task["references"] == {"expert": "expert"}


def test_members_are_loaded_only_when_an_arm_needs_them_and_once_for_tasks_that_share_them(go, monkeypatch):
    loaded = []

    def noting(family, roles):
        loaded.append(set(roles))
        return load(family, roles)

    monkeypatch.setattr("proxytune.models.load", noting)
    go(["open", "choice"], only=["base"], limit=1)
    assert loaded == [{"base"}]
    loaded.clear()
    go(["open", "choice"], only=["base", "tuned"], limit=1)
    assert loaded == [{"base", "tuned:trivia"}, {"base", "tuned:math"}]


@dataclass(frozen=True)
class Broken:
    """A rule that raises; its parameters and source can be recorded like any other's."""

    id: ClassVar[str] = "broken"
    formula: ClassVar[str] = ""
    paper: ClassVar[str] = ""

    def fuse(self, base, experts, antiexpert):
        raise ZeroDivisionError("the rule\nbroke")


class Bare:
    """A rule that forgets its weights."""

    def fuse(self, base, experts, antiexpert):
        return base + experts[0] - antiexpert


def test_an_undefined_gap_says_why_there_is_no_tuned_model_and_nothing_of_other_arms(go):
    broken = {"rule": Broken(), "experts": "own"}
    arms = go(arms={"base": {"model": "base"}, "broken": broken})["tasks"]["open"]["arms"]
    assert arms["base"]["undefined"]["gap_closed"] == "no arm is the tuned model alone"
    found = TaskArms({}, {}, {"base": "base", "tuned": "upper"})
    assert found.without({"broken": "it failed"}).no_tuned == "no arm is the tuned model alone"
    assert found.without({"broken": "it failed", "upper": "it failed too"}).no_tuned == "it failed too"


def test_a_failing_arm_is_recorded_and_takes_no_other_along(go, tmp_path, caplog):
    whole = go(["open", "choice"])
    store = tmp_path / "store.sqlite"
    arms = {"broken": {"rule": Broken(), "experts": "own"}, **ARMS}
    record = go(["open", "choice"], arms, store_path=store, output_dir=tmp_path / "broken")
    assert record["failed"] == {task: {"broken": "ZeroDivisionError: the rule broke"} for task in ("open", "choice")}
    for task, entry in whole["tasks"].items():
        assert record["tasks"][task]["missing"] == {"broken": "it failed with ZeroDivisionError: the rule broke"}
        values = {name: arm["value"] for name, arm in record["tasks"][task]["arms"].items()}
        assert values == {name: arm["value"] for name, arm in entry["arms"].items()}
    assert caplog.text.count("arm broken failed") == 2
    assert "in fuse" in caplog.text  # the traceback, for whoever wrote the rule
    tabulate(read_record(tmp_path / "broken"))


def test_gaps_are_undefined_when_the_base_fails_and_a_task_of_failures_is_left_out(go, monkeypatch):
    class NoBase(HFEngine):
        def generate(self, requests, arms, progress=None):
            if any(arm.name == "base" for arm in arms):
                raise RuntimeError("the model broke")
            return super().generate(requests, arms, progress)

    task = go(engine_factory=NoBase)["tasks"]["open"]
    assert set(task["arms"]) == ARMS.keys() - {"base"}
    assert task["arms"]["proxy"]["undefined"]["gap_closed"] == "no arm is the base model alone"
    record = go(["open", "choice"], engine_factory=NoBase, only=["base"])
    assert (list(record["tasks"]), list(record["failed"])) == (["choice"], ["open"])


def test_an_error_of_the_users_keeps_the_finished_blocks(go, tmp_path, monkeypatch):
    monkeypatch.setattr(shared, "BLOCK", 8)

    class Failing(HFEngine):
        calls = 0

        def generate(self, requests, arms, progress=None):
            self.calls += 1
            for answer in super().generate(requests, arms, progress):
                yield answer
                if self.calls == 3:
                    raise UserError("no memory for one request")

    store = tmp_path / "store.sqlite"
    with pytest.raises(UserError, match="no memory"):
        go(engine_factory=Failing, store_path=store)
    assert list((tmp_path / "out").iterdir()) == []
    answers = go(store_path=store)["provenance"]["timings"]["answers"]
    assert answers["open"] == {"computed": 8 * len(ARMS), "from_store": 16 * len(ARMS)}


def test_a_finished_run_is_not_computed_again_and_gives_the_same_bytes(go, tmp_path):
    first = go(["open", "choice"], store_path=tmp_path / "store.sqlite")
    again = go(["choice", "open"], store_path=tmp_path / "store.sqlite", output_dir=tmp_path / "again")
    assert again["tasks"]["open"] == first["tasks"]["open"]
    assert {task: a["computed"] for task, a in again["provenance"]["timings"]["answers"].items()} == {
        "choice": 0,
        "open": 0,
    }
    for task in ("open", "choice"):
        old, new = (tmp_path / folder / "items" / f"{task}.jsonl" for folder in ("out", "again"))
        assert old.read_bytes() == new.read_bytes()


def test_answers_of_other_runs_are_drafts_and_change_none(go, tmp_path):
    """An arm added to a finished run is verified against what the others answered, in one process or another."""
    other = {"other": {"rule": Static(0.9), "experts": "own"}}
    engine = partial(HFEngine, speculate=6)
    alone = go(arms=other, store_path=tmp_path / "empty.sqlite", engine_factory=engine)
    go(only=["proxy", "base"], store_path=tmp_path / "store.sqlite", output_dir=tmp_path / "first")
    beside = go(arms=other, store_path=tmp_path / "store.sqlite", output_dir=tmp_path / "beside", engine_factory=engine)
    outputs = [[row["arms"]["other"]["output"] for row in _rows(tmp_path / name, "open")] for name in ("out", "beside")]
    assert outputs[0] == outputs[1]
    drafts = [run["provenance"]["timings"]["costs"]["open"]["drafts"] for run in (alone, beside)]
    assert drafts[1]["accepted"] > drafts[0]["accepted"]
    assert drafts[1]["passes"] < drafts[0]["passes"]


def test_arms_asked_for_together_or_apart_give_the_same_values(go, tmp_path):
    together = go(limit=9)["tasks"]["open"]["arms"]
    for arm in ("proxy", "expert"):
        apart = go(only=[arm], limit=9, output_dir=tmp_path / arm)["tasks"]["open"]["arms"]
        assert apart[arm]["value"] == together[arm]["value"]


def test_a_prompt_that_does_not_fit_is_counted(go, tmp_path):
    (tmp_path / "data").mkdir()
    questions = ["short?", "a very long one " * 80]
    _write(tmp_path / "data" / "open.jsonl", [{"question": q, "answer": "x"} for q in questions])
    assert go(data_dir=tmp_path / "data")["tasks"]["open"]["n_truncated"] == 1
    cut = [row["truncated_tokens"] for row in _rows(tmp_path / "out", "open")]
    assert cut[0] == 0 < cut[1]


def test_lm_eval_is_quiet(go, capfd, caplog):
    with caplog.at_level(logging.WARNING):
        go(["open", "choice"], limit=2)
    assert capfd.readouterr() == ("", "")
    assert caplog.text == ""


@dataclass(frozen=True)
class Misspelt(Static):
    def fuse(self, base, experts, antiexpert):
        return super().fuse(bsae, experts, antiexpert)  # noqa: F821


def test_a_bug_in_a_rule_is_one_line_before_any_model_loads(go):
    with pytest.raises(
        UserError, match=r"^arms.proxy.*Misspelt.fuse raises NameError: .*'bsae'.*test_experiment.py, line"
    ):
        go(arms={"proxy": {"rule": Misspelt(1.0)}}, engine_factory=lambda _: pytest.fail("models were loaded"))


@dataclass(frozen=True)
class Doubtful(Static):
    def fuse(self, base, experts, antiexpert):
        warnings.warn("the experts are doubtful", stacklevel=1)
        print("and this is standard error", file=sys.stderr)
        return super().fuse(base, experts, antiexpert)


def test_what_a_rule_says_while_lm_eval_evaluates_is_seen(go, capfd, monkeypatch):
    # As Python does, and as it is not done under pytest, which collects warnings.
    monkeypatch.setattr(warnings, "showwarning", lambda *a: sys.stderr.write(warnings.formatwarning(*a[:4])))
    warnings.simplefilter("always")
    go(arms={"base": {"model": "base"}, "proxy": {"rule": Doubtful(1.0)}}, limit=2)
    said = capfd.readouterr().err
    assert said.count("UserWarning: the experts are doubtful") > 2 and "and this is standard error" in said
    assert not re.search(r"it/s|lm_eval|\d%", said)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"limit": 0}, "limit=0 would evaluate no items"),
        ({"limit": -1}, "limit=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"tasks": []}, "no tasks"),
        ({"tasks": ["open", "open"]}, "'open' is named twice"),
        ({"tasks": ["opne"]}, "opne"),
        ({"only": ["proxi"]}, "Did you mean 'proxy'"),
        ({"only": []}, "no arms"),
        ({"arms": {}}, "no arms"),
        ({"arms": {"a": {"model": "bse"}}}, "Did you mean 'base'"),
        ({"arms": {"a": {"model": "expert:trivi"}}}, "Did you mean 'expert:trivia'"),
        ({"arms": {"a": {"model": "tuned:trivi"}}}, "Did you mean 'tuned:trivia'"),
        ({"arms": {"a": {"modle": "base"}}}, "unknown key 'arms.a.modle'. Did you mean 'arms.a.model'"),
        ({"arms": {"a": {"model": "base", "rule": Static()}}}, "either a model"),
        ({"arms": {"a": {"model": "base", "experts": "all"}}}, "no effect on a model alone"),
        ({"arms": {"a": {"rule": Static(), "experts": ["trivi"]}}}, "Did you mean 'trivia'"),
        (
            {"arms": {"a": {"rule": Static(), "experts": "al"}}},
            "; did you mean all",
        ),
        ({"arms": {"a": {"rule": Static(), "experts": []}}}, "at least one expert"),
        ({"arms": {"a": {"rule": Bare(), "experts": "all"}}}, "arms.a.rule: Bare.fuse returned Tensor"),
        ({"arms": {"a": {"rule": Static(), "experts": "all", "except": ["mathe"]}}}, "Did you mean 'math'"),
        (
            {"arms": {"a": {"rule": Static(), "experts": "all", "except": ["math", "trivia"]}}},
            "arms.a.except leaves no expert",
        ),
        ({"arms": {"a": {"rule": Static(), "except": ["math"]}}}, "experts=all or model=each_expert only"),
        ({"arms": {"a": {"model": "base", "antiexpert": "math"}}}, "arms.a.antiexpert: has no effect on a model alone"),
        (
            {"arms": {"a": {"rule": Static(), "antiexpert": "mathe"}}},
            "model in arms.a.antiexpert 'mathe'. Did you mean 'math'",
        ),
        ({"arms": {"a": {"rule": Static(), "antiexpert": "tuned:maht"}}}, "Did you mean 'tuned:math'"),
        (
            {"arms": {"a": {"rule": Static(), "experts": ["math", "expert:math"]}}},
            "arms.a.experts names 'math' twice",
        ),
        (
            {"arms": {"a": {"rule": Static(), "antiexpert": "expert"}}},
            "antiexpert=expert:trivia is also one of its experts",
        ),
        (
            {"arms": {"a": {"rule": Static(), "base": "tuned:maht"}}},
            "model in arms.a.base 'tuned:maht'. Did you mean 'tuned:math'",
        ),
        (
            {"arms": {"a": {"rule": Contrastive(), "experts": "own"}}},
            "arms.a.experts has no effect: the rule takes base and antiexpert",
        ),
        ({"arms": {"a": {"rule": Static}}}, "is not allowed: it is a fusion rule"),
        (
            {"arms": {"a": {"rule": {"_target_": "proxytune.fusion.Static"}}}},
            "arms.a.rule: {'_target_': 'proxytune.fusion.Static'} is not a rule",
        ),
        ({"arms": {"a": "base"}}, "arms.a='base' is not allowed: it is an arm: a mapping with a model, or with a rule"),
        ({"arms": {"x": {"model": "each_expert"}, "expert:math": {"model": "base"}}}, "two arms are called"),
        ({"data_dir": "nowhere"}, "no folder nowhere"),
        ({"num_fewshot": 2}, "num_fewshot=2"),
        ({"tasks": ["paired"]}, "not one number per item"),
    ],
)
def test_mistakes_are_one_clear_line_and_leave_no_results(go, tmp_path, options, said):
    with pytest.raises(UserError, match=said.replace("(", r"\(")) as error:
        go(**options)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out" / "results.json").exists()


def test_names_are_checked_before_models_load(go, monkeypatch):
    monkeypatch.setattr("proxytune.models.load", lambda *_: pytest.fail("loaded"))
    for options in ({"tasks": ["open", "opne"]}, {"arms": {**ARMS, "a": {"model": "bse"}}}, {"limit": 0}):
        with pytest.raises(UserError):
            go(**options)


def test_missing_models_are_found_before_any_model_loads(go, spec, monkeypatch):
    monkeypatch.setattr("proxytune.models.load", lambda *_: pytest.fail("loaded"))
    family = FamilySpec(spec.base, spec.antiexpert, {**spec.experts, "trivia": "/no/such/folder"}, spec.tuned)
    with pytest.raises(UserError, match="no such folder"):
        go(family=family)


def test_an_output_folder_that_cannot_be_written_is_one_clear_line(go, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("proxytune.models.load", lambda *_: pytest.fail("loaded"))
    with pytest.raises(UserError, match="cannot write there"):
        go(output_dir=tmp_path / "file" / "out")


def test_a_family_with_one_expert_and_one_tuned_model_needs_no_names(spec):
    family = FamilySpec(spec.base, spec.antiexpert, {"chat": spec.experts["math"]}, {"chat": spec.tuned["math"]})
    arms = {name: ARMS[name] for name in ("base", "expert", "tuned", "proxy")}
    found = resolved(arms, family, "gsm8k", "gsm8k")
    assert found.present["expert"].base == "expert:chat"
    assert found.present["tuned"].base == "tuned:chat"
    assert found.present["proxy"].experts == ("expert:chat",)
    assert resolved(arms, family, "arc_easy", None).references == {"base": "base", "expert": "expert", "tuned": "tuned"}


def test_a_task_that_belongs_to_none_of_several_experts_is_refused_where_an_arm_needs_its_own(spec):
    with pytest.raises(UserError, match=r"arms\.expert needs the expert of task 'mmlu'.*math, trivia"):
        resolved(ARMS, spec, "mmlu", "mmlu")
    found = resolved({name: ARMS[name] for name in ("base", "all")}, spec, "mmlu", "mmlu")
    assert found.present["all"].experts == ("expert:math", "expert:trivia")
    assert found.references == {"base": "base"}


def test_on_a_task_without_an_expert_beside_others_with_theirs_such_arms_are_missing(go):
    chosen = {name: ARMS[name] for name in ("base", "expert", "proxy", "all")}
    tasks = go(["open", "unseen"], chosen, limit=4)["tasks"]
    assert list(tasks["open"]["arms"]) == list(chosen)
    assert list(tasks["unseen"]["arms"]) == ["base", "all"]
    assert tasks["unseen"]["missing"] == dict.fromkeys(
        ("expert", "proxy"), "the family has no expert for task 'unseen'"
    )
    with pytest.raises(UserError, match=r"arms\.expert needs the expert of task 'unseen', which names no expert"):
        go(["unseen"], chosen)
    with pytest.raises(UserError, match=r"no arm is left for task 'unseen': the family has no expert for"):
        go(["open", "unseen"], {name: ARMS[name] for name in ("expert", "proxy")})


def test_an_arm_names_its_own_base_and_antiexpert(spec):
    arms = {
        "from trivia": {"rule": Static(), "experts": ["math"], "antiexpert": "trivia"},
        "by role": {"rule": Static(), "experts": ["math"], "antiexpert": "expert:trivia"},
        "own": {"rule": Static(), "experts": ["math"], "antiexpert": "expert"},
        "tuned": {"rule": Static(), "base": "tuned"},
        "contrast": {"rule": Contrastive(), "base": "tuned:math", "antiexpert": "math"},
        "plain": {"rule": Contrastive()},
        "down": {"rule": Static(), "base": "antiexpert", "experts": ["tuned"], "antiexpert": "base"},
    }
    roles = {name: arm.roles for name, arm in resolved(arms, spec, "open", "trivia").present.items()}
    assert roles == {
        **dict.fromkeys(("from trivia", "by role", "own"), ("base", "expert:math", "expert:trivia")),
        "tuned": ("tuned:trivia", "expert:trivia", "antiexpert"),
        "contrast": ("tuned:math", "expert:math"),
        "plain": ("base", "antiexpert"),
        "down": ("antiexpert", "tuned:trivia", "base"),
    }


def test_runs_in_one_process_share_models_until_a_source_changes(go, spec, tmp_path, monkeypatch):
    loads: list[str] = []

    def counted(family, roles):
        loads.append(family.base.path)
        return load(family, roles)

    monkeypatch.setattr("proxytune.models.load", counted)
    moved = tmp_path / "base"
    shutil.copytree(spec.base.path, moved)
    family = replace(spec, base=replace(spec.base, path=str(moved)))
    kept = LoadedModels()

    def scores(family, **options) -> dict:
        record = go(family=family, output_dir=tmp_path / f"run{len(loads)}", loaded=kept, **options)
        return {name: arm["value"] for name, arm in record["tasks"]["open"]["arms"].items()}

    first = scores(family)
    assert scores(family) == first and scores(family, limit=4).keys() == first.keys()
    assert len(loads) == 1
    weights = moved / "model.safetensors"
    weights.write_bytes((Path(spec.tuned["trivia"].path) / "model.safetensors").read_bytes())
    changed = scores(family)
    assert len(loads) == 2
    assert changed["base"] == changed["tuned"] == first["tuned"]


def test_down_scaling_adds_what_tuning_changed_in_the_large_model_to_the_small_one(go, tmp_path):
    """Scaled so far down that only the small model is left, and with the small model as its own antiexpert."""
    down = {"base": "antiexpert", "experts": ["tuned:trivia"]}
    arms = {
        "antiexpert": {"model": "antiexpert"},
        "tuned": {"model": "tuned"},
        "down": {**down, "rule": Static(), "antiexpert": "base"},
        "not at all": {**down, "rule": Static(0.0), "antiexpert": "base"},
        "wholly": {**down, "rule": Static(), "antiexpert": "antiexpert"},
    }
    record = go(["open"], arms)["tasks"]["open"]["arms"]
    assert record["down"]["roles"] == ["antiexpert", "tuned:trivia", "base"]
    assert set(record["down"]["weights"]) == {"tuned:trivia"}
    for row in _rows(tmp_path / "out", "open"):
        outputs = {name: arm["output"] for name, arm in row["arms"].items()}
        assert outputs["not at all"] == outputs["antiexpert"]
        assert outputs["wholly"] == outputs["tuned"]


def test_an_arm_over_a_tuned_model_that_the_task_lacks_is_missing(spec):
    arms = {
        "base": {"model": "base"},
        "more": {"rule": Static(), "base": "tuned", "experts": ["math"]},
        "down": {"rule": Static(), "base": "antiexpert", "experts": ["tuned"], "antiexpert": "base"},
    }
    found = resolved(arms, spec, "mmlu", "mmlu")
    assert list(found.present) == ["base"]
    assert found.missing == dict.fromkeys(("more", "down"), "the family has no tuned model for task 'mmlu'")


def test_contrastive_decoding_needs_no_expert(go, spec, tmp_path):
    family = FamilySpec(spec.base, spec.antiexpert)
    arms = {"base": {"model": "base"}, "contrast": {"rule": Contrastive(0.5)}, "greedy": {"rule": Contrastive(1.0)}}
    record = go(["open"], arms, family)["tasks"]["open"]["arms"]
    assert record["contrast"]["roles"] == ["base", "antiexpert"] and record["contrast"]["weights"] == {}
    assert record["contrast"]["rule"]["parameters"] == {"min_p": 0.5}
    outputs = [{name: arm["output"] for name, arm in row["arms"].items()} for row in _rows(tmp_path / "out", "open")]
    assert all(output["greedy"] == output["base"] for output in outputs)
    assert any(output["contrast"] != output["base"] for output in outputs)


def test_an_item_whose_choices_are_all_ruled_out_is_invalid(go, tmp_path):
    arms = {"base": {"model": "base"}, "filtered": {"rule": Plausible(0.0, min_p=0.9, top_p=1.0), "experts": "all"}}
    record = go(["choice"], arms, limit=4)
    assert "every continuation is ruled out" in record["failed"]["choice"]["filtered"]
    assert record["tasks"]["choice"]["arms"]["filtered"]["value"] is None
    assert all(row["arms"]["filtered"]["output"] is None for row in _rows(tmp_path / "out", "choice"))


def test_choices_that_are_ruled_out_are_counted_and_lose(go, tmp_path):
    """Somewhere between a rule that keeps all choices and one that keeps none."""
    arms = {"base": {"model": "base"}, "filtered": {"rule": Plausible(0.0, min_p=1e-4, top_p=1.0), "experts": "all"}}
    record = go(["choice"], arms)
    entry = record["tasks"]["choice"]["arms"]["filtered"]
    rows = [row["arms"] for row in _rows(tmp_path / "out", "choice")]
    some = [row for row in rows if row["filtered"]["output"] and None in row["filtered"]["output"]]
    assert 0 < len(some) == entry["ruled_out"] < len(rows)
    assert record["tasks"]["choice"]["arms"]["base"]["ruled_out"] == 0
    remarks = tabulate(read_record(tmp_path / "out")).remarks
    assert (
        f"choice: items with choices that the rule excludes, which lose to all others: filtered {len(some)}." in remarks
    )


def test_mutual_information_with_choices_that_are_ruled_out_is_invalid(go):
    """log p(choice | context) - log p(choice) of -inf and -inf is NaN, of -1 and -inf is +inf: argmax would take it."""
    filtered = {"rule": Plausible(0.0, min_p=1e-4, top_p=1.0), "experts": "all"}
    record = go(["mutual"], {"base": {"model": "base"}, "filtered": filtered})["tasks"]["mutual"]["arms"]
    errors = set(record["filtered"]["failed_items"].values())
    assert "a continuation without its context is ruled out (log-probability -inf)" in errors
    assert record["base"]["failed_items"] == {} and record["base"]["metrics"]["acc_mutual_info"] is not None
    assert record["filtered"]["metrics"]["acc_mutual_info"] is None


def test_the_record_names_end_tokens_and_settings_that_are_not_applied(family_folders, data_dir, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(family_folders["base"], folder)
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(
        json.dumps(config | {"repetition_penalty": 1.3, "eos_token_id": [2, 7]})
    )
    spec = FamilySpec(base=str(folder), tuned={"trivia": str(family_folders["tuned:trivia"])})
    arms = {"base": {"model": "base"}, "tuned": {"model": "tuned"}}
    options = {"data_dir": data_dir, "limit": 2}
    for tasks in (["open", "choice"], ["choice"]):
        out = tmp_path / "-".join(tasks)
        record = run(spec, tasks, arms, HFEngine, output_dir=out, **options)
        said = [remark for remark in tabulate(record).remarks if "repetition_penalty=1.3 (base)" in remark]
        assert len(said) == ("open" in tasks), "no remark where nothing is generated"
        assert record.provenance.members["base"].ignored == {"repetition_penalty": 1.3}
        assert record.provenance.members["tuned:trivia"].ignored == {}
        assert record.tasks["choice"].arms["base"].end_tokens is None
    ends = run(spec, ["open"], arms, HFEngine, output_dir=tmp_path / "again", **options).tasks["open"].arms
    token = load(spec, ["base"]).tokenizer.convert_ids_to_tokens(7)
    assert {name: arm.end_tokens for name, arm in ends.items()} == {"base": ["</s>", token], "tuned": ["</s>"]}


def test_the_only_tuned_model_among_the_arms_is_the_upper_bound(spec):
    arms = {"base": {"model": "base"}, "upper": {"model": "tuned:math"}}
    assert resolved(arms, spec, "open", "trivia").references == {"base": "base", "tuned": "upper"}
    both = arms | {"own": {"model": "tuned"}}
    assert resolved(both, spec, "open", "trivia").references == {"base": "base", "tuned": "own"}
    assert resolved(both, spec, "mmlu", "mmlu").references == {"base": "base", "tuned": "upper"}


def test_all_but_some(spec):
    fused = {"rule": Static(), "experts": "all", "except": ["math"]}
    found = resolved({"a": fused, "b": {"model": "each_expert", "except": ["trivia"]}}, spec, "open", "trivia")
    assert found.present["a"].experts == ("expert:trivia",)
    assert list(found.present) == ["a", "expert:math"]


def test_no_undefined_number_reaches_the_file(go, tmp_path):
    go(["open", "judged"], limit=1)

    def refuse(name):
        pytest.fail(f"{name} in results.json")

    for path in (tmp_path / "out").rglob("*.json*"):
        for line in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
            json.loads(line, parse_constant=refuse)


def test_the_running_metric_of_all_items_is_the_result_whether_computed_or_from_the_store(go, tmp_path):
    seen: dict[str, dict[str, tuple]] = {}

    def watch(progress: Progress) -> None:
        for name, task in progress.tasks.items():
            if task.ended is None and task.items is not None:
                seen[name] = {arm: (one.items, one.value) for arm, one in task.arms.items()}
                counts.append((task.answers, task.computed))

    for computed in (True, False):
        counts: list[tuple[int, int]] = []
        record = go(["open", "choice"], store_path=tmp_path / "store.sqlite", watch=watch)
        assert (max(count for _, count in counts) > 0) == computed
        for name, task in record["tasks"].items():
            assert seen[name] == {arm: (N, pytest.approx(one["value"])) for arm, one in task["arms"].items()}
        seen.clear()


def test_a_run_at_work_shows_its_arms_in_the_order_of_the_tables(go):
    """Base, experts, tuned, fused, whatever the order of the configuration."""
    seen = []

    def watch(progress: Progress) -> None:
        seen.append(list(progress.tasks["choice"].arms))

    go(["choice"], arms=dict(reversed(ARMS.items())), watch=watch)
    assert seen[-1] == ["base", "expert", "tuned", "all", "nothing", "proxy"]
