"""The `proxytune` command: finds the sub-command, and turns a user's mistake into one line."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from io import TextIOWrapper

import proxytune
from proxytune.errors import UserError, unknown_name

COMMANDS = {
    "run": "let every arm answer every task and report (no argument: the built-in miniature)",
    "show": "print what each model reads of an item, token by token, and what ends its answer",
    "train": "tune experts, or the large model itself, on a task's training split",
    "merge": "merge experts into one small model",
    "score": "score outputs that were made elsewhere",
    "plan": "say what a family takes in memory, and which GPUs hold it",
    "serve": "serve the arms of a family over HTTP, as an OpenAI-compatible server (needs vLLM)",
    "lm-eval": "lm-evaluation-harness's own command line, with --model proxytune",
    "report": "write one HTML file of one or several runs: tables, figures and every sample",
    "figures": "draw the figures of runs as SVG, PNG or PDF files",
    "analyze": "print what fusion changes token by token, for runs with trace=summary or full",
    "table": "print a paper's tables, with the figures of runs beside the paper's",
    "sync": "log finished runs to Weights & Biases",
    "export": "write runs in the formats of other tools: Inspect, Every Eval Ever, CSV, Parquet",
    "compare": "how runs differ: their configurations, and paired differences of every arm's scores",
    "doctor": "what proxytune finds here: versions, memory, devices, caches, extras",
    "runs": "list finished runs, show one again, clear out the store of answers",
}
"""Sub-command -> what it does. `a-name` lives in `proxytune/cli/a_name.py` as `main(arguments) -> exit status`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `proxytune ARGUMENTS` (None: the process's own) and returns its exit status.

    A `UserError` is one line on standard error and status 1; any other exception is a bug and keeps its traceback, as
    everything does with HYDRA_FULL_ERROR=1.
    """
    # A character that the terminal cannot show is replaced; it must not end a run.
    for stream, errors in ((sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=errors)
    try:
        status = _dispatch(sys.argv[1:] if arguments is None else list(arguments))
        sys.stdout.flush()
        return status
    except UserError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        from proxytune.cli.secrets import hidden

        print("proxytune:", " ".join(hidden(str(error)).split()), file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader of the output (such as `head`) has closed it; what is left in the buffer must not fail at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt as stop:
        if arguments is None:  # this process ends now: another Ctrl-C would only leave a traceback
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        print(f"proxytune: stopped{'; ' if stop.args else ''}{stop}", file=sys.stderr)
        return 130


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if arguments[0] == "--version":
        print(f"proxytune {proxytune.__version__}")
        return 0
    name, *rest = arguments
    if name in ("--shell-completion", "-sc"):
        from proxytune.cli import hydra_completion

        return hydra_completion.main(rest, COMMANDS)
    if name not in COMMANDS:
        raise unknown_name("command", name, COMMANDS)
    # Imported only now, so that `--help` does not wait for torch and transformers.
    command = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    return command.main(rest)


def _help() -> str:
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items())
    return f"""{proxytune.__doc__}

usage: proxytune COMMAND [key=value ...]

{listing}

proxytune COMMAND --help says what a command takes; proxytune --version prints the version."""
