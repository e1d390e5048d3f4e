"""lm-evaluation-harness both ways: our model under its command line, and a saved folder under the stock one."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import lm_eval
import pytest
from lm_eval.tasks import TaskManager
from tiny import save_family

from proxytune.cli import lm_eval as command
from proxytune.cli import main
from proxytune.errors import UserError
from proxytune.fusion import Static
from proxytune.models import FusedCausalLM
from proxytune.tasks import TASKS_DIR

TASKS = (
    """
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "Question: {{question}} Answer:"
doc_to_target: answer
generation_kwargs: {until: ["."], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    """
task: letters
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{question}} Answer:"
doc_to_choice: [Paris, "12", " the red box"]
doc_to_target: 1
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {role: str(path) for role, path in save_family(tmp_path_factory.mktemp("family")).items()}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two tasks and six questions; the working directory."""
    monkeypatch.chdir(tmp_path)
    write_tasks(tmp_path)
    return tmp_path


def write_tasks(folder: Path) -> None:
    data = folder / "data.jsonl"
    rows = [{"question": f"how many apples are {i} and {7 * i}?", "answer": str(8 * i)} for i in range(6)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number, text in enumerate(TASKS):
        (folder / f"task{number}.yaml").write_text(text.replace("DATA", str(data)))


def arguments(model_args: str, output: str) -> list[str]:
    fixed = ["--tasks", "sums,letters", "--include_path", ".", "--batch_size", "1", "--device", "cpu", "--log_samples"]
    return ["--model_args", model_args, *fixed, "--output_path", output]


def evaluated(model: str, model_args: str) -> dict[str, list]:
    """Per-item answers by task, from Python: lm-eval's command line reads thousands of tasks first."""
    import proxytune.experiment.lm_eval.cli_model  # noqa: F401  registers the model

    tasks = TaskManager(include_path=".", include_defaults=False)
    results = lm_eval.simple_evaluate(
        model, model_args, ["sums", "letters"], task_manager=tasks, batch_size=1, device="cpu", bootstrap_iters=0
    )
    return {task: [sample["resps"] for sample in samples] for task, samples in results["samples"].items()}


def answers(folder: Path) -> dict[str, list]:
    """Per-item answers by task."""
    found = {}
    for path in folder.rglob("samples_*.jsonl"):
        samples = [json.loads(line) for line in path.read_text().splitlines()]
        samples.sort(key=lambda sample: sample["doc_id"])
        found[path.name.split("_")[1]] = [sample["resps"] for sample in samples]
    assert set(found) == {"sums", "letters"}
    return found


def same(one: dict[str, list], other: dict[str, list]) -> None:
    assert one["sums"] == other["sums"]
    flat = [[(float(pair[0]), str(pair[1])) for item in side["letters"] for [pair] in item] for side in (one, other)]
    assert [greedy for _, greedy in flat[0]] == [greedy for _, greedy in flat[1]]
    assert [logprob for logprob, _ in flat[0]] == pytest.approx([logprob for logprob, _ in flat[1]], abs=1e-4)


def fused(folders: dict[str, str], alpha: float) -> str:
    members = f"base={folders['base']},expert={folders['expert:math']},antiexpert={folders['antiexpert']}"
    return f"{members},alpha={alpha}"


def test_alpha_zero_is_lm_evals_own_hf_model(folders: dict[str, str], here: Path):
    """The base here has no padding rows: lm-eval's own model gives those a share of the probability."""
    base = folders["expert:math"]
    members = f"base={base},expert={folders['expert:trivia']},antiexpert={folders['antiexpert']}"
    same(evaluated("proxytune", f"{members},alpha=0"), evaluated("hf", f"pretrained={base}"))


def test_both_command_lines_agree(folders: dict[str, str], here: Path):
    """Ours with the parts, and the stock one, which knows nothing of proxytune, with a saved folder and its shim."""
    model = FusedCausalLM.compose(
        base=folders["base"], experts=folders["expert:math"], antiexpert=folders["antiexpert"], rule=Static(1.0)
    )
    model.save_pretrained(here / "saved")
    shim = ["--model", "hf", *arguments("pretrained=saved,trust_remote_code=True", "stock")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(here / "hub")}
    stock = [sys.executable, "-m", "lm_eval", *shim]
    run = subprocess.run(stock, cwd=here, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert main(["lm-eval", "--model", "proxytune", *arguments(fused(folders, 1.0), "ours")]) == 0
    same(answers(here / "stock"), answers(here / "ours"))
    plain = evaluated("proxytune", fused(folders, 0))
    assert answers(here / "ours")["sums"] != plain["sums"]
    same(answers(here / "ours"), evaluated("proxytune", "pretrained=saved"))
    same(plain, evaluated("proxytune", "pretrained=saved,alpha=0"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"expert": "BASE"}, "rule=static takes base, expert, antiexpert, given: base, expert;"),
        ({"alpha": 1}, "rule=static takes base, expert, antiexpert, given: base;"),
        ({"expert": "BASE", "antiexpert": "BASE", "rule": "statik"}, "Did you mean 'static'"),
        ({"expert": "BASE", "antiexpert": "BASE", "rule": "match_kl", "alpha": 1}, "alpha=1 has no effect with rule="),
        ({"expert": "BASE", "antiexpert": "BASE", "alfa": 1}, "Did you mean 'alpha'"),
        ({"expert": "BASE", "antiexpert": "BASE", "alpha": math.nan}, "finite number"),
        ({"base": "nowhere/at/all"}, "no such folder"),
        ({"base": None}, "takes base, given: none of them; a saved FusedCausalLM is pretrained=FOLDER"),
        (
            {"antiexpert": "BASE", "expert": "BASE", "rule": "contrastive"},
            "rule=contrastive takes base, antiexpert, given:",
        ),
        ({"pretrained": "BASE"}, "pretrained brings its own base"),
        ({"base": None, "pretrained": "BASE"}, "is not a saved FusedCausalLM"),
        ({"base": None, "pretrained": "BASE", "missing_tokens": "base_only"}, "brings its own base"),
        ({"base": None, "pretrained": "BASE", "alfa": 1}, "Did you mean 'alpha'"),
        ({"base": {"pth": "BASE"}}, "Did you mean 'model_args.base.path'"),
    ],
)
def test_mistakes_are_one_line(arguments: dict, message: str, folders: dict[str, str]):
    from proxytune.experiment.lm_eval.cli_model import FusedLM

    given = {key: folders["base"] if value == "BASE" else value for key, value in arguments.items()}
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        FusedLM(**{"base": folders["base"], **given})
    assert "\n" not in str(raised.value)


def test_a_saved_family_as_one_member_is_told_apart(folders: dict[str, str], tmp_path: Path):
    from proxytune.experiment.lm_eval.cli_model import FusedLM

    saved = str(tmp_path / "saved")
    FusedCausalLM.compose(folders["base"]).save_pretrained(saved)
    with pytest.raises(UserError, match=r"base: .* is a saved FusedCausalLM, .* pretrained=") as raised:
        FusedLM(base=saved)
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="has 0 experts, but its rule takes base, experts, antiexpert"):
        FusedLM(pretrained=saved, alpha=1.0)


@pytest.mark.parametrize(
    "tasks", [["--tasks", "miniature_trivia"], ["-t", "arc_easy,miniature_tri*"], ["--tasks=miniature_trivia"]]
)
def test_a_task_whose_data_is_only_local_is_refused_before_a_model_loads(tasks: list[str], capsys):
    assert main(["lm-eval", "--model", "proxytune", "--model_args", "base=no/such/model", *tasks]) == 1
    error = capsys.readouterr().err
    assert "miniature_trivia: the task has only local data" in error and "task.data_dir=FOLDER" in error
    assert error.count("\n") == 1


def test_without_a_network_the_error_says_what_reads_local_files(folders: dict[str, str], capsys):
    asked = ["--model", "proxytune", "--model_args", f"base={folders['base']}", "--tasks", "gsm8k_liu2024"]
    assert main(["lm-eval", *asked, "--limit", "1"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("proxytune: --tasks: cannot load the data of a task from the hub (")
    assert "openai/gsm8k" in last and "task.data_dir=FOLDER" in last


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"command": "run", "tasks": ["gsm8k_liu2024"], "include_path": None}, str(TASKS_DIR)),
        ({"command": "validate", "tasks": ["miniature_trivia"], "include_path": None}, str(TASKS_DIR)),
        ({"command": "run", "tasks": ["miniature_trivia"], "include_path": "mine"}, "mine"),
        ({"command": "run", "tasks": None, "include_path": None, "config": "mine.yaml"}, None),
    ],
)
def test_our_tasks_stand_beside_lm_evals(given: dict, path: str | None):
    namespace = argparse.Namespace(**given)
    command._add_our_tasks(namespace)
    assert namespace.include_path == path


def test_a_folder_of_tasks_in_a_configuration_file_is_left_to_it(tmp_path):
    file = tmp_path / "lm_eval.yaml"
    for text, expected in (("limit: 2\n", str(TASKS_DIR)), (f"include_path: {tmp_path}\n", None)):
        file.write_text(text)
        given = argparse.Namespace(command="run", tasks=["gsm8k_liu2024"], include_path=None, config=str(file))
        command._add_our_tasks(given)
        assert given.include_path == expected


def test_lm_evals_cache_of_answers_is_refused(folders: dict[str, str], tmp_path: Path, capsys):
    """Its key is the request alone: alpha = 1 would get the answers of alpha = 0."""
    file, cache = tmp_path / "lm_eval.yaml", tmp_path / "cache"
    file.write_text(f"model: proxytune\nuse_cache: {cache}\n")
    model = ["--model", "proxytune", "--model_args", f"base={folders['base']}", "--tasks", "gsm8k_lm_eval"]
    for arguments in ([*model, "--use_cache", str(cache)], [*model, "-c", str(cache)], ["--config", str(file)]):
        assert main(["lm-eval", "run", *arguments]) == 1
        error = capsys.readouterr().err
        assert error.startswith("proxytune: --use_cache: ") and error.count("\n") == 1
    from proxytune.experiment.lm_eval.cli_model import FusedLM

    with pytest.raises(UserError, match="does not tell models, rules and weights apart"):
        lm_eval.simple_evaluate(FusedLM(base=folders["base"]), tasks=["gsm8k"], use_cache=str(cache))
