"""Imports between rooms go downwards only, as docs/architecture.md draws them."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import proxytune

PACKAGE = Path(proxytune.__file__).parent
ROOMS = (
    *("cli", "tracking", "reporting", "experiment", "miniature", "training", "tasks", "engines", "models", "fusion"),
    *("execution", "statistics", "record", "provenance", "compat", "live", "progress", "console", "validation"),
    *("atomic", "folders", "errors"),
)
"""From the top to the bottom."""
ALONE = {"reporting": {"statistics", "record", "validation", "atomic", "folders", "errors"}, "fusion": set()}
"""Rooms that may use less than what lies below them: reporting knows no model, fusion is pure maths."""
NOT_IMPORTED = {"miniature"}
"""Configurations name it; nothing imports it."""
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem in ROOMS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards(path: Path) -> None:
    here = _room(path)
    below = set(ROOMS[ROOMS.index(here) + 1 :]) - NOT_IMPORTED
    allowed = ALONE.get(here, below) | {here}
    for imported in _imports(path):
        assert imported in allowed, f"{path.relative_to(PACKAGE)} imports {imported}"


def test_fusion_imports_torch_and_the_standard_library_only() -> None:
    """And Triton where a kernel is, which comes with torch for GPUs."""
    for path in (PACKAGE / "fusion").rglob("*.py"):
        allowed = {"torch", "proxytune", *sys.stdlib_module_names, *(["triton"] if path.stem == "kernel" else [])}
        assert {name.partition(".")[0] for name in _modules(path)} <= allowed


def test_every_room_is_known() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders <= set(ROOMS)


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def _imports(path: Path) -> Iterator[str]:
    """The rooms that the file imports, the package's own `__init__` left out."""
    for module in _modules(path):
        package, _, rest = module.partition(".")
        room = rest.partition(".")[0]
        if package == "proxytune" and room in ROOMS:
            yield room


def _modules(path: Path) -> Iterator[str]:
    """Every module imported anywhere in the file, `from package import module` in full."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield str(node.module)
            yield from (f"{node.module}.{name.name}" for name in node.names)
