"""Commands that compute nothing start at once: the packages that each may import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import proxytune

CODE = """
import json, sys
before = {name.partition(".")[0] for name in sys.modules}
import proxytune
if sys.argv[1:]:
    from proxytune.cli import main
    assert main(sys.argv[1:]) == 0
tops = {name.partition(".")[0] for name in sys.modules} - before - sys.stdlib_module_names
print(json.dumps([top for top in tops if not top.startswith("_") and top != "cython_runtime"]), file=sys.stderr)
"""
CHECKS = {"pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection", "typing_inspect"}
TABLES = CHECKS | {"rich", "yaml"}
PANDAS = TABLES | {"pandas", "numpy", "pyarrow", "dateutil", "six", "pytz", "hydra", "omegaconf", "antlr4", "packaging"}
HEAVY = {"torch", "transformers", "peft", "accelerate", "trl", "tokenizers", "safetensors"}
MODELS = {"peft", "accelerate", "trl", "sklearn"}
"""What a model brings with it: its class in transformers imports the rest of transformers, and that these."""
RESULTS = {"tasks": {}, "provenance": {}}
CACHE = {name: os.environ[name] for name in ("PROXYTUNE_CACHE",) if name in os.environ}


def _imported(folder: Path, *arguments: str) -> set[str]:
    """The packages that the command imports beside Python's own."""
    root = str(Path(proxytune.__file__).parents[1])
    run = [sys.executable, "-c", CODE, *arguments]
    environment = {"PYTHONPATH": root, "HOME": str(folder)} | CACHE
    done = subprocess.run(run, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1])) - {"proxytune"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    return tmp_path


@pytest.mark.parametrize("arguments", [(), ("--help",), ("--version",), ("runs", "--help"), ("score", "--help")])
def test_the_bare_package_and_help_import_python_alone(folder: Path, arguments: tuple[str, ...]) -> None:
    assert _imported(folder, *arguments) == set()


@pytest.mark.parametrize("arguments", [("runs", "list", "."), ("runs", "show", ".")])
def test_runs_are_listed_and_shown_without_numbers_libraries(folder: Path, arguments: tuple[str, ...]) -> None:
    assert _imported(folder, *arguments) <= TABLES | {"markdown_it", "mdurl", "pygments"}


def test_answers_are_cleared_out_without_models(folder: Path) -> None:
    from proxytune.experiment.answers.store import AnswerStore

    AnswerStore(folder / "answers.sqlite").close()
    assert _imported(folder, "runs", "gc", "store=answers.sqlite") <= TABLES | {"psutil"}


def test_papers_tables_need_pandas_and_configurations(folder: Path) -> None:
    assert _imported(folder, "table", "paper=liu2024") <= PANDAS | {"attr", "cloudpickle", "numexpr", "bottleneck"}


def test_outputs_are_scored_without_models(folder: Path) -> None:
    (folder / "outputs.jsonl").write_text(json.dumps({"output": "7", "answer": "#### 7"}) + "\n")
    assert not (HEAVY | {"nltk"}) & _imported(folder, "score", "task=gsm8k", "style=liu2024", "outputs=outputs.jsonl")


def test_a_run_whose_answers_are_stored_imports_no_model(folder: Path) -> None:
    run = ("run", "task.names=[miniature_gsm]", "limit=4", "only=[base,proxy,dynamic]", "report=false")
    computed, read = (_imported(folder, *run, "store=answers.sqlite", f"output={name}") for name in ("first", "again"))
    assert {"torch", "peft"} <= computed
    assert not MODELS & read
    first, again = (json.loads((folder / name / "results.json").read_text()) for name in ("first", "again"))
    assert first["tasks"] == again["tasks"]
