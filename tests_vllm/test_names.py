"""Every name of vLLM that `proxytune/engines/vllm` imports, most of them undocumented, is in the installed release."""

import ast
import importlib
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest

import proxytune

ROOM = Path(proxytune.__file__).parent / "engines" / "vllm"
NAMES = sorted(
    {
        (str(node.module), alias.name)
        for path in ROOM.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "vllm"
        for alias in node.names
    }
)


@pytest.mark.parametrize(("module", "name"), NAMES, ids=[".".join(pair) for pair in NAMES])
def test_the_installed_release_has_the_name(module: str, name: str):
    installed = packages_distributions()["vllm"][0]
    try:
        found = hasattr(importlib.import_module(module), name)
    except ImportError as error:
        pytest.fail(f"{installed} {version(installed)}: {module} cannot be imported, and with it {name} ({error})")
    assert found, f"{installed} {version(installed)}: {module} has no {name}"
