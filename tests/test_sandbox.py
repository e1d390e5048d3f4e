"""Programs that try to get out of the sandbox, use up the machine or never end, and programs that end in odd ways."""

from __future__ import annotations

import os
import socket
import subprocess
import textwrap
from pathlib import Path

import psutil
import pytest

from proxytune.errors import UserError
from proxytune.execution import Limits, Sandbox, sandbox
from proxytune.execution.sandbox import _fault

LIMITS = Limits(cpu_seconds=1, seconds=4)
WHY_NOT = _fault("bubblewrap")
needs_bubblewrap = pytest.mark.skipif(WHY_NOT is not None, reason=f"no isolation: {WHY_NOT}")
KINDS = [pytest.param("bubblewrap", marks=needs_bubblewrap), "none"]


def why(program: str, isolation: str = "bubblewrap") -> str:
    return Sandbox(isolation, LIMITS).run(textwrap.dedent(program)).why  # type: ignore[arg-type]


@pytest.mark.parametrize("isolation", KINDS)
@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("import collections, json, math, random, re\nassert math.gcd(4, 6) == 2", "passed"),
        ("assert 1 == 2", "AssertionError"),
        ("def f(:", "SyntaxError"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("import os; os._exit(0)", "ended with status 0"),
        ("if __name__ == '__main__': raise ValueError", "passed"),
        ("input()", "EOFError"),
        ("print('\\ud800')", "passed"),
        ("'\ud800'", "UnicodeEncodeError"),
        ("import os\nif os.fork(): os.wait(); raise KeyError", "KeyError"),  # the child reaches the end
        ("import threading, time\nthreading.Thread(target=time.sleep, args=[60]).start()", "passed"),
    ],
)
def test_the_verdict_is_the_programs_own_end(isolation: str, program: str, expected: str) -> None:
    assert why(program, isolation) == expected


@pytest.mark.parametrize("isolation", KINDS)
@pytest.mark.parametrize(
    "program", ["while True: pass", "import time\ntime.sleep(600)", "import signal\nsignal.pause()"]
)
def test_a_program_that_never_ends_is_timed_out(isolation: str, program: str) -> None:
    limits = Limits(cpu_seconds=1, seconds=2)
    assert Sandbox(isolation, limits).run(program).why == "timed out"  # type: ignore[arg-type]


@pytest.mark.parametrize("isolation", KINDS)
def test_memory_is_limited(isolation: str) -> None:
    assert why("x = bytes(2 ** 31)", isolation) == "MemoryError"


@pytest.mark.parametrize("isolation", KINDS)
def test_gigabytes_of_output_go_nowhere(isolation: str) -> None:
    assert why("for _ in range(2000): print('x' * 10 ** 6)", isolation) in ("passed", "timed out")


@pytest.mark.parametrize("isolation", KINDS)
def test_a_program_that_finds_the_report_can_write_no_more_than_one_limited_file(isolation: str) -> None:
    program = """
        import os, stat
        for fd in range(3, 64):
            try:
                while stat.S_ISREG(os.fstat(fd).st_mode):
                    os.write(fd, b"x" * 10 ** 6)
            except OSError:
                pass
    """
    assert why(program, isolation) != "passed"


@needs_bubblewrap
def test_a_fork_bomb_meets_the_limit_and_leaves_no_process() -> None:
    mark = f"{os.getpid()}.271828"
    program = f"""
        import os
        children = 0
        while True:
            try:
                if not os.fork():
                    os.execv("/usr/bin/sleep", ["sleep", "{mark}"])
                children += 1
            except OSError:
                assert 0 < children < 16, children
                break
    """
    assert why(program) == "passed"
    assert not [process for process in psutil.process_iter(["cmdline"]) if mark in (process.info["cmdline"] or ())]
    assert why("import os\nwhile True: os.fork()") == "BlockingIOError"


@needs_bubblewrap
@pytest.mark.parametrize("folder", ["/tmp", "/dev/shm", "/", "/usr", "/var/tmp"])
def test_the_disk_is_not_filled(folder: str) -> None:
    program = f"""
        for i in range(40):
            with open("{folder}/%d" % i, "wb") as file:
                file.write(bytes(2 ** 22))
    """
    assert why(program) in ("OSError", "FileNotFoundError")
    assert not Path(folder, "0").exists()


@pytest.mark.parametrize("isolation", KINDS)
def test_one_file_is_limited(isolation: str) -> None:
    assert why("open('large', 'wb').write(bytes(2 ** 25))", isolation) == "OSError"


@needs_bubblewrap
def test_neither_network_nor_this_machines_own_ports_are_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        assert why(f"import socket\nsocket.create_connection(({host!r}, {port}), 2)", "none") == "passed"
        assert why(f"import socket\nsocket.create_connection(({host!r}, {port}), 2)") == "ConnectionRefusedError"
    assert why("import socket\nsocket.create_connection(('192.0.2.1', 80), 2)") == "OSError"
    assert why("import socket\nsocket.getaddrinfo('example.org', 80)") == "gaierror"


@needs_bubblewrap
def test_the_users_files_and_environment_are_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = tmp_path / ".ssh" / "id_ed25519"
    key.parent.mkdir()
    key.write_text("a key")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("A_TOKEN", "secret")
    assert why(f"open({str(key)!r}).read()", "none") == "passed"
    assert why(f"open({str(key)!r}).read()") == "FileNotFoundError"
    assert why("import os\nos.listdir(os.path.expanduser('~/.ssh'))") == "FileNotFoundError"
    assert why(f"import os\nos.listdir({str(Path(__file__).parent)!r})") == "FileNotFoundError"
    assert why("open('/etc/passwd')") == "FileNotFoundError"
    assert why("import os\nos.stat('/proc/1')") == "FileNotFoundError"
    assert why("import os\nassert 'A_TOKEN' not in os.environ") == "passed"
    assert why("import os\nassert 'A_TOKEN' not in os.environ", "none") == "passed"


@needs_bubblewrap
def test_nothing_outside_its_folder_is_written(tmp_path: Path) -> None:
    target = tmp_path / "written"
    assert why(f"open({str(target)!r}, 'w')") == "FileNotFoundError"
    for path in ("/new", "/usr/new", "/usr/lib/new", "/dev/new"):
        assert why(f"open({path!r}, 'w')") == "OSError", path
    assert why("import os\nos.unlink('/usr/bin/env')") == "OSError"
    assert why("open('/tmp/new', 'w')\nopen('here', 'w')") == "passed"
    assert not target.exists() and not Path("/tmp/new").exists()


@needs_bubblewrap
def test_no_process_outside_is_killed() -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        for target in ("os.getppid()", str(os.getpid()), str(other.pid), "1", "-1"):
            why(f"import os\nos.kill({target}, 9)")
        assert other.poll() is None
        other.kill()


@needs_bubblewrap
def test_no_privilege_is_left() -> None:
    assert why("import os\nassert os.getuid() and os.getgid()\nos.setuid(0)") in ("PermissionError", "OSError")
    assert why("import resource as r\nr.setrlimit(r.RLIMIT_NPROC, (10 ** 4, 10 ** 4))") == "ValueError"
    assert why("import os\nos.chroot('/tmp')") in ("PermissionError", "OSError")


@pytest.mark.parametrize("isolation", KINDS)
def test_verdicts_come_in_the_order_of_the_programs(isolation: str) -> None:
    programs = [f"assert {i} % 3" for i in range(12)]
    verdicts = Sandbox(isolation, LIMITS).run_all(programs)  # type: ignore[arg-type]
    assert [verdict.passed for verdict in verdicts] == [i % 3 != 0 for i in range(12)]


def test_without_bubblewrap_it_is_refused_and_not_run_unprotected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(sandbox, "_fault", _fault.__wrapped__)
    with pytest.raises(UserError, match=r"^isolation=bubblewrap: there is no bwrap program here.*isolation=none"):
        Sandbox()
    assert Sandbox("none", LIMITS).run("x = 1").passed


def test_a_bubblewrap_that_does_not_work_is_refused_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho bwrap: no namespaces >&2; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(sandbox, "_wrapped", lambda *_: [str(broken)])
    monkeypatch.setattr(sandbox, "_fault", _fault.__wrapped__)
    with pytest.raises(UserError, match=r"does not work here \(the sandbox did not start: bwrap: no namespaces\)"):
        Sandbox()


def test_an_unknown_isolation_is_one_line() -> None:
    with pytest.raises(UserError, match="unknown isolation 'docker'"):
        Sandbox("docker")  # type: ignore[arg-type]
