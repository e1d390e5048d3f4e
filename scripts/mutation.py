"""Which small changes to the code do the tests miss? Runs the tests on many mutants, each with one change.

    python scripts/mutation.py fusion statistics ... [--sample N] [--only PART] [--results FILE]

GROUPS names the modules and their tests, `mutants.py` makes the mutants. pytest collects the tests of a group once. A
forked child runs them, to see which test runs which line. For each mutant another child puts the changed code into the
functions of the module (nothing is written) and runs the tests that run the changed line until one fails: first those
that are fast and have found others. A test that takes far more processor time than before counts as failed. Tests see
nothing of a mutant in processes that they start.

Prints each survivor as it is found, then a table of the modules. With --results the same command continues where a
stopped one was. docs/mutation.md has the last results.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import importlib
import json
import os
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from tempfile import TemporaryDirectory
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest
from mutants import ROOT, Mutant, mutants_of

GROUPS = {
    "fusion": ("proxytune/fusion", "fusion rules every_rule plausible mixture arms"),
    "statistics": ("proxytune/statistics.py", "statistics"),
    "metrics": ("proxytune/tasks/metrics.py", "metrics"),
    "keys": ("proxytune/experiment/answers/keys.py", "keys store"),
    "vocabulary": ("proxytune/models/vocabulary.py", "vocabulary text prompts model_files finite_and_ends"),
    "engines": ("proxytune/engines/hf", "engine speculation static_state finite_and_ends cost traces text"),
}
"""File or folder, and how the names of its tests begin: tests/test_<name>*.py."""
LEFT_OUT = ("proxytune/fusion/solvers/kernel.py",)
"""Triton compiles its source, which no change of code objects reaches."""
MORE = 5
"""Seconds of processor time that a test may take beside five times what it took before."""
IDLE = 600
"""Seconds that tests may take beside 20 times their processor time: the machine may be busy."""


def install(mutant: Mutant, functions: list[FunctionType]) -> None:
    """Puts the changed code into the module's functions, or the changed constants wherever they were imported."""
    loader = Changed(mutant)
    codes = {inner.co_qualname: inner for inner in _inside(loader.get_code(loader.name))}
    for function in functions:
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


def functions_by_file() -> dict[str, list[FunctionType]]:
    """All functions there are."""
    found: dict[str, list[FunctionType]] = defaultdict(list)
    for function in gc.get_objects():
        if isinstance(function, FunctionType):
            found[function.__code__.co_filename].append(function)
    return found


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
    """Forks. The parent gets whether the child, which should need so many seconds, ends well; the child gets None."""
    child = os.fork()
    if child == 0:
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
        self.failed = folder / "failed"
        self.ran: dict[str, tuple[float, set[str]]] = {}
        """Of each test, once it has run without any change: its processor time and the lines that it ran."""
        self.found = Counter[str]()
        """How many mutants each test has found."""

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
        self.functions = functions_by_file()
        gc.freeze()  # or each child would copy the memory of all objects when it collects garbage
        for mutant in self.mutants:
            if self.results.of(mutant) is None and self._try(mutant, session) is None:
                return None
        return True

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """The timer of processor time ends a child whose test takes far too long."""
        if item.nodeid in self.ran:
            signal.setitimer(signal.ITIMER_PROF, MORE + 5 * self.ran[item.nodeid][0])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.write_text(report.nodeid)

    def _try(self, mutant: Mutant, session: pytest.Session) -> bool | None:
        """Whether the mutant survived; None in the child that tries it."""
        tests = self._choose(mutant)
        self.failed.write_text("")
        passed = passes(sum(self.ran[test][0] for test in tests)) if tests else True
        if passed is None:
            by_name = {item.nodeid: item for item in session.items}
            session.items[:] = [by_name[test] for test in tests]
            install(mutant, self.functions[str(ROOT / mutant.file)])
            return None
        self.found[self.failed.read_text()] += 1
        self.results.add(mutant, survived=passed)
        return passed

    def _choose(self, mutant: Mutant) -> list[str]:
        """The tests that may notice a mutant, in order: for a constant all that run a line of its file."""
        lines = {f"{mutant.file}:{line}" for line in mutant.lines}
        if mutant.constant:
            lines = {line for _, ran in self.ran.values() for line in ran if line.startswith(f"{mutant.file}:")}
        tests = [test for test, (_, ran) in self.ran.items() if ran & lines]
        return sorted(tests, key=lambda test: self.ran[test][0] / (1 + self.found[test]))


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

    def table(self, mutants: list[Mutant]) -> str:
        """Of each file: mutants tried, killed and survived."""
        tried = Counter(mutant.file for mutant in mutants)
        survived = Counter(mutant.file for mutant in mutants if self.of(mutant))
        rows = [f"| `{file}` | {n} | {n - survived[file]} | {survived[file]} |" for file, n in sorted(tried.items())]
        return "\n".join([*rows, f"| all | {len(mutants)} | {len(mutants) - survived.total()} | {survived.total()} |"])


def run_group(path: str, names: str, options: argparse.Namespace) -> None:
    files = (str(f.relative_to(ROOT)) for f in [ROOT / path, *(ROOT / path).rglob("*.py")] if f.is_file())
    mutants = [m for file in sorted(files) if options.only in file and file not in LEFT_OUT for m in mutants_of(file)]
    if options.sample:  # by a hash, so that the sample stays the same where the code does
        mutants = sorted(mutants, key=lambda mutant: hashlib.sha256(mutant.key.encode()).digest())[: options.sample]
    for mutant in mutants:
        importlib.import_module(module_name(mutant.file))
    tests = sorted(str(test) for name in names.split() for test in ROOT.glob(f"tests/test_{name}*.py"))
    results = Results(options.results)
    with TemporaryDirectory() as folder:
        owner = os.getpid()
        arguments = ["-xqsp", "no:cacheprovider", "--disable-warnings", "--tb=native", *tests]
        status = pytest.main(arguments, plugins=[Trials(mutants, results, Path(folder))])
        if os.getpid() != owner:
            os._exit(status)  # a child
    if status:
        sys.exit(status)
    print(results.table(mutants), flush=True)


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
