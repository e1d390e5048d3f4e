"""Runs one program at a time in its own process: isolated by bubblewrap, under limits, judged by what it reports."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, Literal

from proxytune.errors import UserError, unknown_name
from proxytune.provenance import available_cores

Isolation = Literal["bubblewrap", "none"]
ISOLATIONS: tuple[Isolation, ...] = ("bubblewrap", "none")
NOBODY = 65534
_REPORT = 4096
"""Bytes of a report that are read; it has two short lines."""
_TIMED_OUT = 128 + signal.SIGXCPU


@dataclass(frozen=True)
class Limits:
    """What one program may use."""

    cpu_seconds: int = 3
    """of processor time for each of its processes; so long a program of HumanEval may run in the paper's evaluation"""
    seconds: float = 15.0
    """of wall time, for programs that wait; well above `cpu_seconds`, so that a busy machine does not decide"""
    memory: int = 2**30
    """bytes of address space for each of its processes"""
    file_size: int = 2**24
    """bytes of one file"""
    folder_size: int = 2**26
    """bytes of all its files together (bubblewrap only)"""
    processes: int = 16
    """processes and threads; not enforced for root without bubblewrap"""
    open_files: int = 64

    def resources(self) -> dict[str, int]:
        """As `resource` names them."""
        return {
            "RLIMIT_CPU": self.cpu_seconds,
            "RLIMIT_AS": self.memory,
            "RLIMIT_FSIZE": self.file_size,
            "RLIMIT_NPROC": self.processes,
            "RLIMIT_NOFILE": self.open_files,
            "RLIMIT_CORE": 0,
        }


@dataclass(frozen=True)
class Verdict:
    passed: bool
    why: str
    """"passed", the name of an exception, "timed out", or "ended with status N" without a report"""


@dataclass(frozen=True)
class Sandbox:
    """Where generated programs run.

    isolation "bubblewrap": no network, no file of the machine but the interpreter and system libraries (read-only), an
    empty writable folder in memory, own process ids, no privileges. isolation "none": the limits alone; a program can
    read and write whatever its user can.
    """

    isolation: Isolation = "bubblewrap"
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Raises UserError for an unknown isolation, and for one that cannot be had here, with the reason."""
        if self.isolation not in ISOLATIONS:
            raise unknown_name("isolation", self.isolation, ISOLATIONS)
        if fault := _fault(self.isolation):
            raise UserError(
                f"isolation={self.isolation}: {fault}; or give isolation=none, which runs the code with your own rights"
            )

    def run_all(self, programs: Sequence[str]) -> list[Verdict]:
        """The verdict of each program; as many run at once as there are processors."""
        with ThreadPoolExecutor(available_cores()) as pool:
            return list(pool.map(self.run, programs))

    def run(self, program: str) -> Verdict:
        """Raises UserError if the program could not be started."""
        token = secrets.token_hex(16)
        task = {"program": program, "limits": self.limits.resources(), "token": token, "user": _user(self.isolation)}
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as errors:
            given.write(json.dumps(task).encode())
            given.seek(0)
            with _folder(self.isolation) as folder:
                command = [*_wrapped(self.isolation, self.limits), *_python()]
                status = _status(command, folder, (given, said, errors), self.limits.seconds)
            return _verdict(token, status, _beginning(said), _beginning(errors))


def _status(command: Sequence[str], folder: str, streams: tuple[IO[bytes], ...], seconds: float) -> int | None:
    """How the process ended; None if it was killed because its time was up."""
    given, said, errors = streams
    process = subprocess.Popen(
        command, stdin=given, stdout=said, stderr=errors, cwd=folder, env={"PATH": "/usr/bin:/bin"}, process_group=0
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):  # all have ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _verdict(token: str, status: int | None, said: str, errors: str) -> Verdict:
    lines = said.splitlines()
    if not lines or lines[0] != f"{token} started":
        why = " ".join(errors.split()) or ("its time was up" if status is None else f"status {status}")
        raise UserError(f"the sandbox did not start: {why}")
    if len(lines) > 1 and lines[1].startswith(f"{token} "):
        outcome = lines[1].removeprefix(f"{token} ")
        return Verdict(outcome == "passed", outcome)
    if status is None or status in (_TIMED_OUT, -signal.SIGXCPU):
        return Verdict(False, "timed out")
    return Verdict(False, f"ended with status {status}")


def _beginning(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(_REPORT).decode(errors="replace")


def _python() -> list[str]:
    """The interpreter outside the virtual environment, with only the standard library."""
    return [os.path.realpath(sys.executable), "-I", "-S", "-c", _inside()]


@cache
def _inside() -> str:
    return Path(__file__).with_name("inside.py").read_text(encoding="utf-8")


def _user(isolation: Isolation) -> int | None:
    """The user that a program of root's becomes: limits on processes do not hold for root."""
    return NOBODY if isolation == "bubblewrap" and os.geteuid() == 0 else None


@contextlib.contextmanager
def _folder(isolation: Isolation) -> Iterator[str]:
    """The folder in which the process begins; the sandbox has its own."""
    if isolation == "bubblewrap":
        yield "/"
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield folder


def _wrapped(isolation: Isolation, limits: Limits) -> list[str]:
    """The command that a program's command is appended to."""
    if isolation == "none":
        return []
    # Root keeps the one right to become nobody, once inside; all others get a user namespace instead.
    becoming = ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    who = ["--cap-drop", "ALL", *(becoming if os.geteuid() == 0 else ["--unshare-user"])]
    apart = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    folder = ["--perms", "1777", "--size", str(limits.folder_size), "--tmpfs", "/tmp", "--chdir", "/tmp"]
    closed = ["--dev", "/dev", "--remount-ro", "/dev", "--remount-ro", "/"]
    return ["bwrap", *who, *apart, "--die-with-parent", "--new-session", *_system(), *folder, *closed, "--"]


@cache
def _system() -> list[str]:
    """What is seen of the machine, read-only: system libraries and the interpreter's own folder."""
    options = ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "lib", "lib32", "lib64"):
        path = Path("/") / name
        if path.is_symlink():
            options += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            options += ["--ro-bind", str(path), str(path)]
    home = Path(os.path.realpath(sys.base_prefix))
    if home.is_relative_to("/usr"):
        return options
    for parent in reversed(home.parents[:-1]):  # open to all, whatever it is outside
        options += ["--perms", "0755", "--dir", str(parent)]
    return [*options, "--ro-bind", str(home), str(home)]


@cache
def _fault(isolation: Isolation) -> str | None:
    """Why this isolation cannot be had here; None if a program runs in it."""
    if isolation == "none":
        return None
    if shutil.which("bwrap") is None:
        return "there is no bwrap program here: install bubblewrap (Debian: apt install bubblewrap)"
    sandbox = object.__new__(Sandbox)  # without the check that asks for this
    object.__setattr__(sandbox, "isolation", isolation)
    object.__setattr__(sandbox, "limits", Limits())
    try:
        verdict = sandbox.run("")
    except UserError as error:
        return f"bubblewrap does not work here ({error})"
    return None if verdict.passed else f"bubblewrap does not work here (an empty program {verdict.why})"
