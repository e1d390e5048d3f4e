"""What the README shows works: its Python runs, its commands compose."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from test_compare import write_run
from test_lm_eval import write_tasks
from tiny import save_family

from proxytune import FusedCausalLM, Static, miniature
from proxytune.cli import main
from proxytune.folders import config_dir
from proxytune.record import ArmRecord, Record, TaskRecord, read_record
from proxytune.reporting.columns import Cell
from proxytune.reporting.tables import tabulate

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [
    line.partition(" #")[0].strip()
    for _, block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("proxytune ")
]


def commands(name: str) -> list[str]:
    return [command for command in COMMANDS if command.split()[1] == name]


def test_the_python_example_runs(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    tiny = OmegaConf.to_container(OmegaConf.load(config_dir() / "miniature" / "tiny.yaml"))
    build = miniature.family
    monkeypatch.setattr(miniature, "family", lambda: build(tiny))
    [code] = [block for language, block in BLOCKS if language == "python" and "FusedCausalLM" in block]
    names: dict = {}
    exec(code, names)
    assert "question : what is the capital of" in capsys.readouterr().out
    prompt = names["prompt"]
    again = names["again"].generate(**prompt, max_new_tokens=8)
    assert again.tolist() == names["answer"].tolist()


def test_the_table_is_what_the_default_run_prints(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PROXYTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert main(["run", "output=out"]) == 0
    capsys.readouterr()
    scores = tabulate(read_record("out"), full=False).tables[0]
    shown = [line.strip("| ").split(" | ") for line in README.splitlines() if re.match(r"\| \w+ \| .* ± ", line)]
    assert shown == [[arm, *map(_plain, cells)] for arm, cells in scores.rows.items()]


def _plain(cell: Cell) -> str:
    """Without marks of footnotes; the best in bold."""
    text = re.sub(r"[¹²³⁴⁵⁶⁷⁸⁹⁰]", "", cell.text)
    return f"**{text}**" if cell.best else text


def test_the_rule_of_the_readme_is_an_arm(monkeypatch, tmp_path, capsys):
    [code] = [block for language, block in BLOCKS if language == "python" and "yours.py" in block]
    [command] = [command for command in commands("run") if "yours." in command]
    names: dict = {}
    exec(code, names)
    with pytest.raises(ValueError, match=r"Certain\.scale must be a finite number, got nan"):
        names["Certain"](scale=float("nan"))
    masked = torch.tensor([[1.0, 2.0, -torch.inf]])
    fused = names["Certain"]().fuse(torch.zeros(1, 3), torch.stack([masked, masked]), masked.flip(-1))
    assert fused.logits.isfinite().all() and fused.weights.shape == (2, 1)
    (tmp_path / "yours.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main([*shlex.split(command)[1:], "miniature=tiny", "limit=4", "output=out"]) == 0
    assert "certain" in capsys.readouterr().out
    tasks = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]
    weights = [task["arms"]["certain"]["weights"][task["expert"]]["mean"] for task in tasks.values()]
    assert all(0 < weight < 1 for weight in weights) and len(weights) == 5


@pytest.mark.parametrize(
    "command", [c for c in commands("run") if "yours." not in c] + commands("train") + commands("merge")
)
def test_configured_commands_compose(command, capfd):
    arguments = shlex.split(command)[1:]
    if "-m" in arguments:  # Hydra prints no sweep: its first job
        arguments = [argument.partition(",")[0] for argument in arguments if argument != "-m"]
    assert main([*arguments, "--cfg", "job"]) == 0
    assert "_target_" in capfd.readouterr().out


def test_the_offline_training_trains(monkeypatch, tmp_path, capsys):
    [command] = [command for command in commands("train") if "miniature=tiny" in command]
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(command)[1:]) == 0
    assert "experts gsm: trained, 4 steps" in capsys.readouterr().out


@pytest.mark.parametrize("command", commands("table"))
def test_table_commands_print_the_paper(command, capsys, tmp_path):
    arguments = [argument for argument in shlex.split(command)[1:] if not argument.startswith("runs=")]
    if "layout=" in command:
        arms = {"base": ArmRecord(value=0.25), "tuned": ArmRecord(value=0.75), "proxy": ArmRecord(value=0.5)}
        record = Record(tasks={"mine": TaskRecord(metric="acc", higher_is_better=True, n=4, arms=arms)})
        (tmp_path / "results.json").write_text(record.model_dump_json())
        arguments.append(f"runs=[{tmp_path}]")
    assert main(arguments) == 0
    assert "%" in capsys.readouterr().out


@pytest.mark.parametrize("command", commands("compare"))
def test_compare_commands_compare(command, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for folder in shlex.split(command)[2:]:
        write_run(Path(folder), [0.0, 1.0])
    assert main(shlex.split(command)[1:]) == 0
    assert "proxy" in capsys.readouterr().out


def test_score_command_reads_outputs(capsys, tmp_path):
    [command] = commands("score")
    outputs = tmp_path / "outputs.jsonl"
    outputs.write_text('{"question": "1 + 1?", "answer": "#### 2", "output": "It is 2."}\n')
    assert main(shlex.split(command.replace("FILE.jsonl", str(outputs)))[1:]) == 0
    assert "exact_match" in capsys.readouterr().out


@pytest.mark.parametrize("command", commands("lm-eval"))
def test_lm_eval_commands_evaluate(command, capsys, monkeypatch, tmp_path):
    """On a task whose data is here."""
    monkeypatch.chdir(tmp_path)
    write_tasks(tmp_path)
    folders = save_family(tmp_path / "family")
    members = {"LARGE": "base", "SMALL_TUNED": "expert:math", "SMALL": "antiexpert"}
    for name, role in members.items():
        command = re.sub(rf"={name}\b", f"={folders[role]}", command)
    parts = [folders[role] for role in members.values()]
    FusedCausalLM.compose(*parts, rule=Static(1.0)).save_pretrained("fused")
    command = command.replace("--tasks gsm8k", "--tasks sums --include_path .")
    assert main(shlex.split(command)[1:]) == 0
    assert "|sums" in capsys.readouterr().out


def test_every_command_of_the_readme_is_tested():
    tested = ("run", "compare", "train", "merge", "table", "score", "lm-eval")
    assert len(COMMANDS) == sum(len(commands(name)) for name in tested)
    assert len(COMMANDS) >= 8


def test_every_link_leads_somewhere():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]
    for link in links:
        assert (Path(__file__).parents[1] / link).exists(), link
