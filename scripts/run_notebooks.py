"""Runs the notebooks and keeps their outputs, without what was written to standard error (progress bars, warnings).

python scripts/run_notebooks.py [notebooks/2_alpha.ipynb ...]     default: all of notebooks/
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"


def executed(notebook: nbformat.NotebookNode, folder: str | Path) -> nbformat.NotebookNode:
    """`notebook` with the outputs that it has when it runs in `folder`."""
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources, record_timing=False).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata.language_info = nbformat.NotebookNode(name="python")  # else that of this very Python
    return notebook


if __name__ == "__main__":
    for path in [Path(argument) for argument in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(executed(nbformat.read(path, as_version=4), folder), path)
        print(path, path.stat().st_size, "bytes", flush=True)
