"""Which small changes to the code do the tests not notice? Runs the tests on many mutants, each with one change.

    python scripts/mutation.py fusion statistics ... [--sample N] [--only PART] [--results FILE]

GROUPS names the modules and their tests. Mutants: comparisons (< to <= and >=, == to !=, in, is), arithmetic (+ -, * /,
** *, % *, // /, & |), numbers +1 and -1, True and False, and/or, `not`, minus and ~ left out, conditions negated,
`return None`, the first two arguments swapped, a keyword argument left out, break and continue swapped, and calls,
augmented assignments and raises deleted. Strings, annotations and f-strings are left alone.

The tests of a group run once on a copy of the repository, to see which test runs which line and what they import. A
mutant changes one file of the copy. A forked child, with torch and the like imported already, runs the tests that run
the changed line, fastest first, until one fails; a test that takes far longer than before counts as failed. Lines that
run when a module is imported concern all tests. Tests in other processes do not count. Prints each survivor as it is
found and the counts of each module; docs/mutation.md explains the survivors of the last full run. With --results the
same command continues where a stopped one was; `grep -v '"survived": true'` that file to try the survivors again.
"""

from __future__ import annotations

import argparse
import ast
import compileall
import copy
import hashlib
import importlib
import importlib.util
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
GROUPS = {
    "fusion": ("proxytune/fusion", "fusion rules every_rule plausible arms"),
    "statistics": ("proxytune/statistics.py", "statistics"),
    "metrics": ("proxytune/tasks/metrics.py", "metrics tasks"),
    "keys": ("proxytune/experiment/answers/keys.py", "keys store"),
    "engines": ("proxytune/engines/hf", "engine fused"),
}
"""File or folder, and how the names of its tests begin: tests/test_<name>*.py."""
SWAPS: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.Pow: (ast.Mult,),
    ast.Mod: (ast.Mult,),
    ast.FloorDiv: (ast.Div,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
    ast.Break: (ast.Continue,),
    ast.Continue: (ast.Break,),
}

SYMMETRIC = ("max", "min", "maximum", "minimum")
"""Functions whose first two arguments may be exchanged."""


@dataclass(frozen=True)
class Mutant:
    """One change of one file."""

    file: str
    lines: tuple[int, ...]
    """The lines of which a test must run one to notice the change."""
    start: int
    """Bytes [start, end) of the file become `text`."""
    end: int
    text: str

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.text.encode() + source[self.end :]

    def describe(self, source: bytes) -> str:
        """`file:line`, the line before and the line after, each on one line."""
        first = source.rfind(b"\n", 0, self.start) + 1
        last = source.find(b"\n", self.end)
        after = source[first : self.start] + self.text.encode() + source[self.end : last]
        before, after = (" ".join(text.decode().split()) for text in (source[first:last], after))
        return f"{self.file}:{self.lines[0]}\n  - {before}\n  + {after}"


def mutants(file: str) -> list[Mutant]:
    """All mutants of a file, by position."""
    source = (ROOT / file).read_bytes()
    begins = [0]
    for line in source.splitlines(keepends=True):
        begins.append(begins[-1] + len(line))
    found = []
    for statement, node, change in _changes(ast.parse(source)):
        text = ast.unparse(change)
        compound = hasattr(statement, "body")
        whole = node if compound else statement
        found.append(
            Mutant(
                file=file,
                lines=(node.lineno, *range(whole.lineno, (whole.end_lineno or whole.lineno) + 1)),
                start=begins[node.lineno - 1] + node.col_offset,
                end=begins[node.end_lineno - 1] + node.end_col_offset,
                text=f"({text})" if isinstance(node, ast.expr) else text,
            )
        )
    return sorted(found, key=lambda mutant: (mutant.start, mutant.end))


def _changes(tree: ast.AST, statement: Any = None) -> Iterator[tuple[Any, Any, ast.AST]]:
    """Each node that can be changed, with the statement that it is in and what may stand in its place."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns"):
            continue
        for node in value if isinstance(value, list) else [value]:
            if not isinstance(node, ast.AST) or isinstance(node, ast.JoinedStr):
                continue
            inside = node if isinstance(node, ast.stmt) else statement
            yield from ((inside, changed, change) for changed, change in _change(node))
            yield from _changes(node, inside)


def _change(node: Any) -> Iterator[tuple[ast.AST, ast.AST]]:
    match node:
        case ast.Compare():
            for i, op in enumerate(node.ops):
                for other in SWAPS[type(op)]:
                    yield node, _with(node, ops=[*node.ops[:i], other(), *node.ops[i + 1 :]])
        case ast.BinOp() | ast.BoolOp() | ast.AugAssign() if type(node.op) in SWAPS:
            yield node, _with(node, op=SWAPS[type(node.op)][0]())
        case ast.UnaryOp():
            yield node, node.operand
        case ast.Constant(value=bool()):
            yield node, ast.Constant(not node.value)
        case ast.Constant(value=int() | float()):
            yield from ((node, ast.Constant(node.value + by)) for by in (1, -1))
        case ast.Call():
            stars = any(isinstance(argument, ast.Starred) for argument in node.args[:2])
            if len(node.args) > 1 and not stars and ast.unparse(node.func).split(".")[-1] not in SYMMETRIC:
                yield node, _with(node, args=[node.args[1], node.args[0], *node.args[2:]])
            for i in range(len(node.keywords)):
                yield node, _with(node, keywords=node.keywords[:i] + node.keywords[i + 1 :])
        case ast.Return(value=ast.expr()):
            yield node, ast.Return(ast.Constant(None))
        case ast.Break() | ast.Continue():
            yield node, SWAPS[type(node)][0]()
    match node:
        case ast.Expr(value=ast.Constant()):
            return
        case ast.Expr() | ast.AugAssign() | ast.Raise():
            yield node, ast.Pass()
        case ast.If() | ast.While() | ast.IfExp() | ast.comprehension():
            tests = node.ifs if isinstance(node, ast.comprehension) else [node.test]
            # Comparisons and `not` have mutants of their own that say the opposite.
            yield from ((t, ast.UnaryOp(ast.Not(), t)) for t in tests if not isinstance(t, ast.Compare | ast.UnaryOp))


def _with(node: ast.AST, **fields: object) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


class Recorder:
    """A pytest plugin that writes down which lines of which files each test runs, and how long it takes."""

    def __init__(self, files: list[str], output: Path) -> None:
        self.files, self.output = {str(output.parent / file): file for file in files}, output
        self.lines: dict[str, list[str]] = {}
        self.seconds: dict[str, float] = {}
        self._start()

    def _start(self) -> None:
        self.hits, self.began = set(), time.perf_counter()
        sys.settrace(self._trace)

    def _stop(self, test: str) -> None:
        sys.settrace(None)
        self.lines[test], self.seconds[test] = sorted(self.hits), time.perf_counter() - self.began

    def _trace(self, frame: Any, event: str, argument: object) -> Any:
        file = self.files.get(frame.f_code.co_filename)
        if file is None:
            return None
        self.hits.add(f"{file}:{frame.f_lineno}")
        return self._trace

    def pytest_collection_finish(self) -> None:
        self._stop("")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._start()
        try:
            return (yield)
        finally:
            self._stop(item.nodeid)

    def pytest_sessionfinish(self) -> None:
        modules = [name for name in sys.modules if "site-packages" in str(getattr(sys.modules[name], "__file__", ""))]
        self.output.write_text(json.dumps({"lines": self.lines, "seconds": self.seconds, "modules": modules}))


class Chooser:
    """A pytest plugin that runs some of the tests, in the order given."""

    def __init__(self, tests: list[str]) -> None:
        self.order = {test: i for i, test in enumerate(tests)}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((item for item in items if item.nodeid in self.order), key=lambda i: self.order[i.nodeid])


def copied() -> Path:
    """A copy of the repository that may be changed; what is neither package nor tests is linked."""
    tree = Path(tempfile.mkdtemp(prefix="mutation-"))
    for entry in ROOT.iterdir():
        if entry.name in ("proxytune", "tests"):
            shutil.copytree(entry, tree / entry.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif not entry.name.startswith("."):
            (tree / entry.name).symlink_to(entry)
    compileall.compile_dir(tree / "proxytune", quiet=1)
    return tree


def run_tests(tree: Path, plugin: object, tests: list[str], timeout: float, log: str = os.devnull) -> bool:
    """Whether the tests pass in a forked child, in time."""
    child = os.fork()
    if child == 0:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(tree)
        sys.path.insert(0, str(tree))
        os.environ.update(PYTHONPATH=str(tree), PYTHONDONTWRITEBYTECODE="1")
        sys.dont_write_bytecode = True
        _forget_shrinking()
        os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests], plugins=[plugin]))
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def _forget_shrinking() -> None:
    """hypothesis need not look for the simplest failure."""
    from hypothesis import Phase, settings

    settings.register_profile("mutation", phases=[Phase.explicit, Phase.generate])
    settings.load_profile("mutation")


class Workplace:
    """A copy of the repository, what is known of the tests on it, and the mutants to be tried there."""

    def __init__(self, path: str, names: str) -> None:
        self.tree = copied()
        self.files = sorted(
            str(f.relative_to(ROOT)) for f in [ROOT / path, *(ROOT / path).rglob("*.py")] if f.is_file()
        )
        self.tests = sorted(
            str(test.relative_to(ROOT)) for name in names.split() for test in ROOT.glob(f"tests/test_{name}*.py")
        )
        output, log = self.tree / "recorded.json", str(self.tree / "pytest.log")
        if not run_tests(self.tree, Recorder(self.files, output), self.tests, 3600, log):
            sys.exit(f"the tests fail without any change:\n{Path(log).read_text()[-3000:]}")
        recorded = json.loads(output.read_text())
        self.seconds: dict[str, float] = recorded["seconds"]
        self.lines = {test: set(lines) for test, lines in recorded["lines"].items()}
        self.imported = self.lines.pop("")
        _import_all(recorded["modules"])

    def choose(self, mutant: Mutant) -> list[str]:
        """The tests that may notice a mutant, fastest first."""
        lines = {f"{mutant.file}:{line}" for line in mutant.lines}
        tests = self.lines if lines & self.imported else [test for test, ran in self.lines.items() if ran & lines]
        return sorted(tests, key=lambda test: self.seconds[test])

    def survives(self, mutant: Mutant) -> bool:
        tests = self.choose(mutant)
        target = self.tree / mutant.file
        source = target.read_bytes()
        Path(importlib.util.cache_from_source(str(target))).unlink(missing_ok=True)
        try:
            target.write_bytes(mutant.apply(source))
            timeout = 30 + 5 * sum(self.seconds[test] for test in tests)
            return not tests or run_tests(self.tree, Chooser(tests), sorted({t.split("::")[0] for t in tests}), timeout)
        finally:
            target.write_bytes(source)


def _import_all(modules: list[str]) -> None:
    """So that a fork need not."""
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception:
            continue  # the child will import it as the tests do


class Results:
    """Which mutants survived, one a line of a file if there is one."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        lines = file.read_text().splitlines() if file and file.exists() else []
        self.survived: dict[str, bool] = {line["mutant"]: line["survived"] for line in map(json.loads, lines)}

    def of(self, place: Workplace, mutant: Mutant) -> bool:
        source = (place.tree / mutant.file).read_bytes()
        key = f"{mutant.file} {hashlib.sha256(source).hexdigest()[:8]} {mutant.start}-{mutant.end} {mutant.text}"
        if key not in self.survived:
            self.survived[key] = place.survives(mutant)
            if self.file:
                with self.file.open("a") as file:
                    print(json.dumps({"mutant": key, "survived": self.survived[key]}), file=file)
        return self.survived[key]


def run_group(path: str, names: str, options: argparse.Namespace) -> None:
    place, results = Workplace(path, names), Results(options.results)
    every = [mutant for file in place.files if options.only in file for mutant in mutants(file)]
    if options.sample:
        every = random.Random(0).sample(every, min(options.sample, len(every)))
    print(f"{path}: {len(every)} mutants, {len(place.lines)} tests, {sum(place.seconds.values()):.0f} s", flush=True)
    tried, survived = Counter[str](), Counter[str]()
    for mutant in every:
        tried[mutant.file] += 1
        if results.of(place, mutant):
            survived[mutant.file] += 1
            print(mutant.describe((place.tree / mutant.file).read_bytes()), flush=True)
    for file in [*tried, "all"]:
        n, left = (counter.total() if file == "all" else counter[file] for counter in (tried, survived))
        print(f"{file}: {n - left} of {n} killed ({(n - left) / n:.1%})", flush=True)
    shutil.rmtree(place.tree)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("groups", nargs="+", choices=GROUPS)
    parser.add_argument("--sample", type=int, help="try so many mutants of each group only")
    parser.add_argument("--only", default="", help="mutants of files with this in their path only")
    parser.add_argument("--results", type=Path, help="keep results here, and continue from them")
    options = parser.parse_args()
    for group in options.groups:
        run_group(*GROUPS[group], options)


if __name__ == "__main__":
    main()
