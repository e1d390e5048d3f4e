"""Private names of dependencies stand in proxytune/compat and nowhere else, and the installed releases have them."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path
from types import ModuleType

import pytest

import proxytune
from proxytune.compat import Name

PACKAGE = Path(proxytune.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
COMPAT = {path: path.stem for path in FILES if path.parent.name == "compat" and path.stem != "__init__"}
LISTED: list[Name] = [n for stem in COMPAT.values() for n in importlib.import_module(f"proxytune.compat.{stem}").NAMES]
DOCUMENTED = {
    "hydra": {
        "hydra",
        "hydra.core.global_hydra",
        "hydra.core.hydra_config",
        "hydra.errors",
        "hydra.types",
        "hydra.utils",
    },
    "lm_eval": {"lm_eval", "lm_eval.api.instance", "lm_eval.api.registry", "lm_eval.api.task"}
    | {"lm_eval.models.huggingface", "lm_eval.tasks"},
    "peft": {"peft"},
    "transformers": {"transformers", "transformers.cache_utils", "transformers.modeling_outputs"}
    | {"transformers.trainer_utils", "transformers.utils"},
    "trl": {"trl"},
}
"""What other rooms may import of these packages: what their documentation shows."""
DOCUMENTED_PRIVATE = {"_make", "_replace", "_asdict", "_fields", "_exit"}
"""The standard library's documentation shows them in spite of their underscore: of namedtuples, and `os._exit`."""


@pytest.mark.parametrize("name", LISTED, ids=lambda name: f"{name.where}.{name.name}")
def test_the_installed_release_has_the_name(name: Name):
    assert (said := lacking(name)) is None, said


def test_a_name_is_listed_once():
    pairs = [(name.where, name.name) for name in LISTED]
    assert len(pairs) == len(set(pairs))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (Name("transformers.no_such", "mask", "why"), "transformers.no_such is gone, and with it mask (why)"),
        (Name("transformers.cache_utils:NoCache", "crop", "why"), "transformers.cache_utils:NoCache is gone"),
        (Name("transformers.cache_utils:Cache", "_crop", "why"), "transformers.cache_utils:Cache has no _crop (why)"),
        (Name("peft:PeftModel", "set_additional_trainable_modules", "why", overridden=True), "nothing in peft uses"),
    ],
)
def test_what_a_release_lacks_is_named_with_its_version(name: Name, said: str):
    package = name.where.partition(".")[0].partition(":")[0]
    assert lacking(name) and said in lacking(name) and f"{package} {version(package)}: " in lacking(name)


def lacking(name: Name) -> str | None:
    """What the installed package lacks of `name`: "package version: ..."."""
    module, _, kind = name.where.partition(":")
    top = module.partition(".")[0]
    package = packages_distributions()[top][0]
    try:
        owner = importlib.import_module(module)
        owner = getattr(owner, kind) if kind else owner
    except (ImportError, AttributeError):
        missing = f"{name.where} is gone, and with it {name.name}"
    else:
        if not _has(owner, name.name):
            missing = f"{name.where} has no {name.name}"
        elif name.overridden and not _uses(top, name.name):
            missing = f"nothing in {top} uses {kind}.{name.name}, which we override"
        else:
            return None
    return f"{package} {version(package)}: {missing} ({name.why})"


def _has(owner: ModuleType | type, name: str) -> bool:
    """As an attribute, or for a class as one that its source names: instances may get it later."""
    if hasattr(owner, name) or isinstance(owner, ModuleType):
        return hasattr(owner, name)
    return any(re.search(rf"\b{name}\b", inspect.getsource(k)) for k in owner.__mro__ if k.__module__ != "builtins")


def _uses(package: str, name: str) -> bool:
    """Whether the package reads the attribute `name` of anything."""
    folder = Path(str(importlib.import_module(package).__file__)).parent
    for path in folder.rglob("*.py"):
        text = path.read_text(encoding="utf-8", errors="ignore")
        if f".{name}" in text and any(
            a.attr == name and isinstance(a.ctx, ast.Load) for a in _attributes(ast.parse(text))
        ):
            return True
    return False


# --- nowhere else ---


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_private_names_of_others_are_used_in_compat_alone(path: Path):
    found = set(_foreign(ast.parse(path.read_text(encoding="utf-8"))))
    listed = {"__dict__", *(name.name for name in LISTED)} if path in COMPAT else set()
    assert found <= listed | DOCUMENTED_PRIVATE


@pytest.mark.parametrize(
    "path", [path for path in FILES if path not in COMPAT], ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_undocumented_modules_are_imported_in_compat_alone(path: Path):
    modules = {module for module, _ in _imports(ast.parse(path.read_text(encoding="utf-8")))}
    assert not [m for m in modules if (top := m.partition(".")[0]) in DOCUMENTED and m not in DOCUMENTED[top]]


def test_what_our_classes_override_is_listed():
    listed = {name.name for name in LISTED if name.overridden}
    for kind in _our_classes():
        (body,) = ast.parse(inspect.getsource(kind)).body
        ours = {name for name in _defined(body) if _is_private(name)}
        for parent in kind.__mro__[1:]:
            if not parent.__module__.startswith("proxytune"):
                assert {name for name in ours if hasattr(parent, name)} <= listed, f"{kind} over {parent}"


def _our_classes() -> Iterator[type]:
    for path in FILES:
        module = ".".join(["proxytune", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
        inside_vllm = path.parent.name == "vllm" and path.name in ("members.py", "model.py", "runners.py")
        elsewhere = inside_vllm or path.name in ("__main__.py", "kernel.py")  # vLLM and Triton are not installed here
        if not elsewhere:
            for kind in vars(importlib.import_module(module)).values():
                if inspect.isclass(kind) and kind.__module__ == module and kind.__qualname__ == kind.__name__:
                    yield kind


def _foreign(tree: ast.Module) -> Iterator[str]:
    """Private names of other packages in a file: imported, attributes of anything but our own objects, as strings."""
    for module, name in _imports(tree):
        if not module.startswith("proxytune"):
            yield from (part for part in [*module.split("."), name] if _is_private(part))
    for node in _attributes(tree):
        own = ast.unparse(node.value) in ("self", "cls", "super()") and node.attr in _own_names()
        if node.attr == "__dict__" or (_is_private(node.attr) and not own):
            yield node.attr
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr", "delattr"):
            yield from (a.value for a in node.args[1:2] if isinstance(a, ast.Constant) and _is_private(str(a.value)))


@cache
def _own_names() -> set[str]:
    """The private names that classes of ours define, in their bodies or in `self`."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in FILES]
    kinds = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    return {name for kind in kinds for name in _defined(kind) if _is_private(name)}


def _defined(kind: ast.stmt) -> Iterator[str]:
    assert isinstance(kind, ast.ClassDef)
    for node in ast.walk(kind):
        if isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def _attributes(tree: ast.Module) -> Iterator[ast.Attribute]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))


def _imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(module, name in it or "") of every import in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((str(node.module), alias.name) for alias in node.names)


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")
