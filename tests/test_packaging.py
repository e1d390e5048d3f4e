"""The wheel holds the configurations and the task files, and works away from the checkout."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "-w", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", *build, str(ROOT)], check=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed wheel and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    install = ["install", "--quiet", "--no-deps", "--disable-pip-version-check", "--target", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", *install, str(wheel)], check=True)
    return folder


def run(installed: Path, folder: Path, *arguments: str) -> str:
    """Standard output of the installed package's command, started in `folder`."""
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_wheel_has_every_file_of_the_checkout_that_is_read(wheel: Path):
    held = set(zipfile.ZipFile(wheel).namelist())
    conf = {f"proxytune/conf/{path.relative_to(ROOT / 'conf')}" for path in (ROOT / "conf").rglob("*.yaml")}
    tasks = {str(path.relative_to(ROOT)) for path in (ROOT / "proxytune").rglob("*.yaml")}
    report = {str(path.relative_to(ROOT)) for path in (ROOT / "proxytune/reporting/report/parts").iterdir()}
    assert conf | tasks | report <= held
    assert not any(name.startswith(("tests/", "conf/", "scripts/")) for name in held)


@pytest.mark.parametrize("module", ["proxytune", "proxytune.cli"])
def test_the_installed_command_finds_its_configurations(installed: Path, tmp_path: Path, module: str):
    printed = run(installed, tmp_path, "-m", module, "run", "seed=3", "--cfg", "job")
    config = yaml.safe_load(printed)
    assert config["seed"] == 3
    assert config["models"]["_target_"] == "proxytune.miniature.family"
    where = run(installed, tmp_path, "-c", "from proxytune.folders import config_dir; print(config_dir())")
    assert Path(where.strip()) == installed / "proxytune" / "conf"


def test_the_installed_command_finds_its_tasks(installed: Path, tmp_path: Path):
    row = {"question": "1 + 1?", "answer": "#### 2", "output": "That is 2."}
    (tmp_path / "outputs.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    arguments = ["task=gsm8k", "style=liu2024", "outputs=outputs.jsonl"]
    printed = run(installed, tmp_path, "-m", "proxytune", "score", *arguments)
    assert re.search(r"^exact_match +1\.0$", printed, re.MULTILINE)


def test_an_editable_install_is_the_checkout_and_nothing_else(tmp_path: Path):
    code = "import sys; from hatchling.build import build_editable; print(build_editable(sys.argv[1]))"
    built = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True, capture_output=True, text=True
    )
    archive = zipfile.ZipFile(tmp_path / built.stdout.strip())
    (pointer,) = (name for name in archive.namelist() if ".dist-info/" not in name)
    assert pointer.endswith(".pth") and archive.read(pointer).decode() == str(ROOT)


def test_what_is_imported_is_declared_and_what_is_declared_is_imported():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    own = ("train", "gguf", "vllm", "wandb", "api")
    extras = {name: _names(project["optional-dependencies"][name]) for name in own}
    imported: dict[str, set[str]] = {}
    # vLLM and Ray live in environments of their own; Triton comes with the CUDA builds of torch.
    elsewhere = {"vllm": ["vllm"], "ray": ["ray"], "triton": ["torch"]}
    packages = {**packages_distributions(), **elsewhere}
    for path in (ROOT / "proxytune").rglob("*.py"):
        for module in _modules(path) - set(sys.stdlib_module_names) - {"proxytune"}:
            for package in packages[module]:
                imported.setdefault(_normalized(package), set()).add(path.relative_to(ROOT / "proxytune").as_posix())
    assert imported.keys() == _names(project["dependencies"]).union(*extras.values())
    assert all(path.startswith(("compat/trl.py", "training/")) for path in imported["trl"])
    assert all(path.startswith("models/loading/") for path in imported["gguf"])
    assert all(path.startswith("engines/vllm/") for path in imported["vllm"])
    assert all(path.startswith(("tracking/wandb.py", "cli/sync.py")) for path in imported["wandb"])
    assert imported["openai"] == {"models/api/client.py"}


def _names(requirements: list[str]) -> set[str]:
    return {_normalized(re.split(r"[<>=!~\[ ]", requirement)[0]) for requirement in requirements}


def _normalized(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def _modules(path: Path) -> set[str]:
    """The top names of all imports in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).partition(".")[0])
    return found


def test_help_needs_no_heavy_library(installed: Path, tmp_path: Path):
    code = "import sys; from proxytune.cli import main; main(['--help']); print(*sys.modules)"
    modules = run(installed, tmp_path, "-c", code).splitlines()[-1].split()
    assert not {"torch", "transformers", "hydra", "pandas", "lm_eval"} & set(modules)


def test_the_locked_set_names_versions_only():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in pins.values()), "no +cpu, no address"
    assert list(pins) == sorted(pins)
    assert (pins["torch"], pins["transformers"], pins["lm-eval"]) == ("2.13.0", "5.19.0", "0.4.13")


def test_the_scripts_are_executable():
    for script in (".ci/run", "scripts/check.sh", "scripts/check_vllm.sh"):
        assert os.access(ROOT / script, os.X_OK), script


def test_no_file_holds_an_unfinished_merge():
    listed = subprocess.run(["git", "grep", "-lE", "^(<{7}|>{7}) "], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 128:
        pytest.skip("not a git checkout")
    assert listed.stdout == ""
