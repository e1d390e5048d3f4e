"""Runs one program under limits and reports how it ended. `python -c` gets this text: only the standard library.

Standard input is JSON: program, limits ({name of an RLIMIT: value}), token and user (an id to become, or null).
Standard output gets two lines that begin with the token: "started", then "passed" or the name of an exception. The
program itself can reach neither, because its three standard streams are null devices. It runs as `exec(program, {})`,
as in HumanEval's own evaluation, so that `if __name__ == "__main__":` does not run.
"""

import json
import os
import resource
import signal
import sys


def main() -> None:
    task = json.load(sys.stdin)
    report = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    sys.stdout = open(nowhere, "w", errors="surrogatepass", closefd=False)  # noqa: SIM115 (any text may be printed)
    confine(task["limits"], task["user"])
    me = os.getpid()
    os.write(report, f"{task['token']} started\n".encode())
    try:
        exec(compile(task["program"], "<program>", "exec"), {})
        outcome = "passed"
    except BaseException as error:  # the program may raise anything, SystemExit too
        outcome = type(error).__name__
    if os.getpid() == me:  # a forked child that reaches the end has no say
        os.write(report, f"{task['token']} {outcome}\n".encode())
    signal.raise_signal(signal.SIGKILL)  # ends at once, with all threads and without exit handlers


def confine(limits: dict, user: int | None) -> None:
    for name, value in limits.items():
        soft = value
        if name == "RLIMIT_CPU":  # the signal at the soft limit tells a timeout from other ends
            value += 1
        resource.setrlimit(getattr(resource, name), (soft, value))
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)


if __name__ == "__main__":
    main()
