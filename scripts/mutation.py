"""Which small changes to the code do the tests not notice? Runs the tests on many mutants, each with one change.

    python scripts/mutation.py fusion statistics ... [--sample N] [--only PART] [--results FILE]

GROUPS names the modules and their tests. Mutants: comparisons (< to <= and >=, == to !=, in, is), arithmetic (+ -, * /,
** *, % *, // /, & |), numbers +1 and -1, True and False, and/or, `not`, minus and ~ left out, conditions negated,
`return None`, the first two arguments swapped, a keyword argument left out, break and continue swapped, and calls,
augmented assignments and raises deleted. Strings, annotations, f-strings, decorators, and the defaults of arguments and
of fields are left alone.

pytest collects the tests of a group once. A forked child runs them, to see which test runs which line. For each mutant
another child puts the changed code into the functions of the module (nothing is written) and runs the tests that run
the changed line, fastest first, until one fails; tests that take far more processor time than before count as failed.
Tests see nothing of it in processes that they start. Prints each survivor as it is found, then a table of the modules.
With --results the same command continues where a stopped one was. docs/mutation.md has the last results.
"""

from __future__ import annotations

import argparse
import ast
import copy
import gc
import importlib
import json
import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.machinery import SourceFileLoader
from pathlib import Path
from tempfile import TemporaryDirectory
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
GROUPS = {
    "fusion": ("proxytune/fusion", "fusion rules every_rule plausible mixture arms"),
    "statistics": ("proxytune/statistics.py", "statistics"),
    "metrics": ("proxytune/tasks/metrics.py", "metrics"),
    "keys": ("proxytune/experiment/answers/keys.py", "keys store"),
    "vocabulary": ("proxytune/models/vocabulary.py", "vocabulary text prompts model_files"),
    "engines": ("proxytune/engines/hf", "engine generate speculation static_state finite_and_ends cost traces"),
}
"""File or folder, and how the names of its tests begin: tests/test_<name>*.py."""
LEFT_OUT = ("proxytune/fusion/solvers/kernel.py",)
"""Triton compiles its source, which no change of code objects reaches."""
SWAPS: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,), ast.NotIn: (ast.In,), ast.And: (ast.Or,), ast.Or: (ast.And,),
    ast.Add: (ast.Sub,), ast.Sub: (ast.Add,), ast.Mult: (ast.Div,), ast.Div: (ast.Mult,), ast.Pow: (ast.Mult,),
    ast.Mod: (ast.Mult,), ast.FloorDiv: (ast.Div,), ast.BitAnd: (ast.BitOr,), ast.BitOr: (ast.BitAnd,),
    ast.Break: (ast.Continue,), ast.Continue: (ast.Break,),
}  # fmt: skip
IDLE = 600
"""Seconds that tests may take beside 20 times their processor time: the machine may be busy."""
IDLE = 600
"""Seconds that tests may take beside 20 times their processor time: the machine may be busy."""
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
    constant: bool
    """Whether it changes a constant of the module rather than a function."""
    nth: int = 0
    """How many equal changes of equal lines come before it in the file."""

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.text.encode() + source[self.end :]

    @property
    def lines_changed(self) -> tuple[str, str]:
        """The line before and the line after, each as one line."""
        source = (ROOT / self.file).read_bytes()
        first = source.rfind(b"\n", 0, self.start) + 1
        last = source.find(b"\n", self.end)
        after = source[first : self.start] + self.text.encode() + source[self.end : last]
        before, after = (" ".join(text.decode().split()) for text in (source[first:last], after))
        return before, after

    @property
    def key(self) -> str:
        """The same as long as its line is."""
        return " | ".join([self.file, *self.lines_changed, str(self.nth)])


def mutants_of(file: str) -> list[Mutant]:
    """All mutants of a file, by position."""
    source = (ROOT / file).read_bytes()
    begins = [0]
    for line in source.splitlines(keepends=True):
        begins.append(begins[-1] + len(line))
    found = []
    tree = ast.parse(source)
    for statement, node, change in _changes(tree):
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
                constant=statement in tree.body,
            )
        )
    seen = Counter[str]()
    for i, mutant in enumerate(sorted(found, key=lambda mutant: (mutant.start, mutant.end))):
        found[i] = replace(mutant, nth=seen[mutant.key])
        seen[mutant.key] += 1
    return found


def _changes(tree: ast.AST, statement: Any = None) -> Iterator[tuple[Any, Any, ast.AST]]:
    """Each node that can be changed, with the statement that it is in and what may stand in its place."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns", "decorator_list", "defaults", "kw_defaults"):
            continue
        for node in value if isinstance(value, list) else [value]:
            if not isinstance(node, ast.AST) or isinstance(node, ast.JoinedStr):
                continue
            if isinstance(tree, ast.ClassDef) and not isinstance(node, ast.FunctionDef):
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
        case ast.Return(value=ast.expr()) if ast.unparse(node) != "return None":
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


def install(mutant: Mutant) -> None:
    """Puts the changed code into the functions of the module, or the changed constants wherever they were imported."""
    loader = Changed(mutant)
    codes = {inner.co_qualname: inner for inner in _inside(loader.get_code(loader.name))}
    for function in gc.get_objects():
        if isinstance(function, FunctionType) and function.__code__.co_filename == loader.path:
            try:
                function.__code__ = codes[function.__code__.co_qualname]
            except ValueError:  # it closes over other names than before, which Python refuses: counts as survived
                os._exit(0)
    if mutant.constant:
        old, module = vars(sys.modules[loader.name]), ModuleType(loader.name)
        loader.exec_module(module)
        for name, value in vars(module).items():
            plain = name in old and not name.startswith("__") and not isinstance(value, type | FunctionType)
            if plain and repr(value) != repr(old[name]):
                _rebind(name, old[name], value)


class Changed(SourceFileLoader):
    """Loads the module with the change."""

    def __init__(self, mutant: Mutant) -> None:
        super().__init__(module_name(mutant.file), str(ROOT / mutant.file))
        self.mutant = mutant

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.mutant.apply(Path(self.path).read_bytes()), self.path)


def _inside(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _inside(constant)


def _rebind(name: str, old: object, new: object) -> None:
    for module in list(sys.modules.values()):
        if vars(module).get(name) is old:
            setattr(module, name, new)


def module_name(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def passes(seconds: float, log: str = os.devnull) -> bool | None:
    """Forks. The parent gets whether the child ends well within so many seconds of processor time, the child None."""
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds)))
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        return None
    # Tests that wait for what never comes use no processor time. Looks are counted, so that a pause of all is none.
    for _ in range(int(100 * (IDLE + 20 * seconds))):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


class Recorder:
    """A pytest plugin that writes down which lines of some files each test runs, and its processor time."""

    def __init__(self, files: Iterable[str], output: Path) -> None:
        self.paths, self.output = {str(ROOT / file): file for file in files}, output
        self.ran: dict[str, tuple[float, list[str]]] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.hits, began = set[str](), time.process_time()
        sys.settrace(self._trace)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            self.ran[item.nodeid] = time.process_time() - began, sorted(self.hits)

    def _trace(self, frame: Any, event: str, argument: object) -> Any:
        file = self.paths.get(frame.f_code.co_filename)
        if file is None:
            return None
        self.hits.add(f"{file}:{frame.f_lineno}")
        return self._trace

    def pytest_sessionfinish(self) -> None:
        self.output.write_text(json.dumps(self.ran))


class Trials:
    """A pytest plugin: instead of running the tests, forks a child that runs them all, and a child for each mutant."""

    def __init__(self, mutants: list[Mutant], results: Results, folder: Path) -> None:
        self.mutants, self.results, self.folder = mutants, results, folder

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """None in a child, where pytest goes on with its own loop."""
        recorded, log = self.folder / "recorded.json", self.folder / "pytest.log"
        passed = passes(36_000, str(log))
        if passed is None:
            session.config.pluginmanager.register(Recorder({m.file for m in self.mutants}, recorded))
            return None
        if not passed:
            pytest.exit(f"the tests fail without any change:\n{log.read_text()[-3000:]}", returncode=1)
        self.ran = {test: (seconds, set(lines)) for test, (seconds, lines) in json.loads(recorded.read_text()).items()}
        print(f"{len(self.mutants)} mutants, {len(self.ran)} tests", flush=True)
        for mutant in self.mutants:
            if self.results.of(mutant) is None and self._try(mutant, session) is None:
                return None
        return True

    def _try(self, mutant: Mutant, session: pytest.Session) -> bool | None:
        """Whether the mutant survived; None in the child that tries it."""
        tests = self._choose(mutant)
        passed = passes(30 + 5 * sum(self.ran[test][0] for test in tests)) if tests else True
        if passed is None:
            by_name = {item.nodeid: item for item in session.items}
            session.items[:] = [by_name[test] for test in tests]
            install(mutant)
            return None
        self.results.add(mutant, survived=passed)
        return passed

    def _choose(self, mutant: Mutant) -> list[str]:
        """The tests that may notice a mutant, fastest first: for a constant all that run a line of its file."""
        lines = {f"{mutant.file}:{line}" for line in mutant.lines}
        if mutant.constant:
            lines = {line for _, ran in self.ran.values() for line in ran if line.startswith(f"{mutant.file}:")}
        tests = [test for test, (_, ran) in self.ran.items() if ran & lines]
        return sorted(tests, key=lambda test: self.ran[test][0])


class Results:
    """Which mutants survived, one a line of a file if there is one."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        lines = file.read_text().splitlines() if file and file.exists() else []
        self.survived: dict[str, bool] = {line["mutant"]: line["survived"] for line in map(json.loads, lines)}

    def of(self, mutant: Mutant) -> bool | None:
        return self.survived.get(mutant.key)

    def add(self, mutant: Mutant, survived: bool) -> None:
        self.survived[mutant.key] = survived
        if survived:
            print(f"{mutant.file}:{mutant.lines[0]}\n  - {{}}\n  + {{}}".format(*mutant.lines_changed), flush=True)
        if self.file:
            with self.file.open("a") as file:
                print(json.dumps({"mutant": mutant.key, "survived": survived}), file=file)


def run_group(path: str, names: str, options: argparse.Namespace) -> None:
    files = (str(f.relative_to(ROOT)) for f in [ROOT / path, *(ROOT / path).rglob("*.py")] if f.is_file())
    mutants = [m for file in sorted(files) if options.only in file and file not in LEFT_OUT for m in mutants_of(file)]
    if options.sample:
        mutants = random.Random(0).sample(mutants, len(mutants))[: options.sample]
    for mutant in mutants:
        importlib.import_module(module_name(mutant.file))
    tests = sorted(str(test) for name in names.split() for test in ROOT.glob(f"tests/test_{name}*.py"))
    results = Results(options.results)
    with TemporaryDirectory() as folder:
        owner = os.getpid()
        arguments = ["-xqsp", "no:cacheprovider", "--disable-warnings", *tests]
        status = pytest.main(arguments, plugins=[Trials(mutants, results, Path(folder))])
        if os.getpid() != owner:
            os._exit(status)  # a child
    if status:
        sys.exit(status)
    tried = Counter(mutant.file for mutant in mutants)
    survived = Counter(mutant.file for mutant in mutants if results.of(mutant))
    for file in sorted(tried):
        print(f"| `{file}` | {tried[file]} | {tried[file] - survived[file]} | {survived[file]} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("groups", nargs="+", choices=GROUPS)
    parser.add_argument("--sample", type=int, help="try so many mutants of each group, drawn at random")
    parser.add_argument("--only", default="", help="mutants of files with this in their path only")
    parser.add_argument("--results", type=Path, help="keep results here, and continue from them")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    _hurry()
    for group in options.groups:
        run_group(*GROUPS[group], options)


def _hurry() -> None:
    """hypothesis need not look for the simplest failure, nor mind a busy machine."""
    from hypothesis import HealthCheck, Phase, settings

    phases, health = [Phase.explicit, Phase.generate], list(HealthCheck)
    settings.register_profile("mutation", phases=phases, deadline=None, suppress_health_check=health, database=None)
    settings.load_profile("mutation")


if __name__ == "__main__":
    main()
