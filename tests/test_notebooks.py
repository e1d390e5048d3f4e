"""The notebooks run from a clean checkout, and what is committed is light and shows no machine's paths."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from run_notebooks import executed

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def shown(notebook: nbformat.NotebookNode) -> list[list[str]]:
    """The kinds of what each output shows; printed text may come in any number of pieces."""
    return [sorted(output["data"]) for output in outputs(notebook) if "data" in output]


def test_there_are_five():
    assert [path.name[0] for path in NOTEBOOKS] == list("12345")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, tmp_path: Path):
    notebook = nbformat.read(path, as_version=4)
    committed = shown(notebook)
    assert shown(executed(notebook, tmp_path)) == committed, "run scripts/run_notebooks.py and commit what it writes"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_committed_is_complete_and_light(path: Path):
    notebook = nbformat.read(path, as_version=4)
    found = outputs(notebook)
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in found)
    assert any("image/svg+xml" in kinds for kinds in shown(notebook))
    assert max(len(str(output)) for output in found) < 100_000
    assert not re.search(r"/(home|root|tmp|Users)/", path.read_text(encoding="utf-8"))
