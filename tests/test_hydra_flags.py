"""Hydra's flags that print, and completion in a real bash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from proxytune.cli import main
from proxytune.folders import config_dir

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ([], "BashCompletion"),
        (["config"], "seed: 3"),
        (["defaults"], "| arms/miniature "),
        (["defaults-tree"], "arms: miniature"),
        (["plugins"], "BasicLauncher"),
        (["searchpath"], f"file://{config_dir()}"),
    ],
)
def test_info_prints_what_hydra_found_and_runs_nothing(asked, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "seed=3", "--info", *asked]) == 0
    assert said in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_an_unknown_kind_of_info_is_one_line(capsys):
    assert main(["run", "--info", "nonsense"]) == 1
    assert capsys.readouterr().err.startswith("proxytune: argument --info/-i: invalid choice: 'nonsense'")


def test_info_shows_no_secret(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "a-secret-of-mine")
    assert main(["run", "+models.token=${oc.env:HF_TOKEN}", "--info", "config"]) == 0
    assert "a-secret-of-mine" not in capsys.readouterr().out


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an executable `proxytune`, as an installed package has."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "proxytune").write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from proxytune.cli import main\nsys.exit(main())\n"
    )
    (folder / "proxytune").chmod(0o755)
    return folder


LINES = {
    "proxytune ru": ["run", "runs"],
    "proxytune train tra": ["training="],
    "proxytune run models=mini": ["models=miniature", "models=miniature_prompt_loss"],
    "proxytune run seed=1 arms.pro": ["arms.proxy."],
    "proxytune run arms.proxy.rule.wei": ["arms.proxy.rule.weights="],
    "proxytune run -m hydra/sweeper=ba": ["hydra/sweeper=basic"],
    "proxytune run --config-n": ["--config-name"],
    "proxytune run limit=nonsense] tas": [],
}


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_commands_groups_keys_and_flags(command: Path):
    """The documented line sets it up; then, for each line, what bash does when Tab is pressed at its end."""
    script = ['eval "$(proxytune -sc install=bash)"']
    for line in LINES:
        words = line.split()
        script.append(
            f"COMP_LINE='{line}' COMP_POINT={len(line)} COMP_WORDS=({' '.join(words)}) COMP_CWORD={len(words) - 1}\n"
            'hydra_bash_completion; echo "${COMPREPLY[@]}"'
        )
    environment = os.environ | {"PATH": f"{command}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", "\n".join(script)], env=environment, capture_output=True, text=True)
    assert done.stderr == ""
    found = dict(zip(LINES, done.stdout.splitlines(), strict=True))
    assert {line: sorted(offered.split()) for line, offered in found.items()} == {
        line: sorted(offered) for line, offered in LINES.items()
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["install=tcsh"], "No completion plugin for 'tcsh' found, available : bash fish zsh"),
        ([], "--shell-completion takes one of install=SHELL, uninstall=SHELL and query=SHELL"),
        (["instal=bash"], "unknown key 'instal'. Did you mean 'install'?"),
    ],
)
def test_a_mistake_of_completion_is_one_line(arguments, said, capsys):
    assert main(["--shell-completion", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"proxytune: {said}") and error.count("\n") == 1
