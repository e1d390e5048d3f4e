"""What traces cost: time over that without them, paired within each round, and bytes on disk per generated token.

Time is the process's own on the CPU, on one thread, so that other work on the machine counts little.

python scripts/trace_cost.py [--repeats 5] [--limit 40]

run     the miniature's four tasks of generation with its ten arms, every item traced: seconds of the whole run
engine  six arms over a random family (base of 44 M parameters, 32,000 tokens): seconds of `HFEngine.generate`
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet
import torch
from benchmark_family import SIX, family, prompts, ratio

from proxytune.cli import main as proxytune
from proxytune.engines.hf import HFEngine
from proxytune.engines.requests import GenerateRequest

LEVELS = ("none", "summary", "full")
TASKS = "task.names=[miniature_gsm,miniature_trivia,miniature_mmlu,miniature_cnn]"


def timed(repeats: int, **calls: Callable[[], object]) -> dict[str, list[float]]:
    """CPU seconds of each call, `repeats` times, the calls taking turns; a first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if turn:
                seconds[name].append(time.process_time() - start)
    return seconds


def run(level: str, limit: int, folder: Path) -> None:
    """A whole run, from loading the models to the files."""
    traced = [] if level == "none" else [f"trace={level}", "trace_items=null"]
    shutil.rmtree(folder / level, ignore_errors=True)
    arguments = ["run", TASKS, f"limit={limit}", "store=null", "report=false", f"output={folder / level}", *traced]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        status = proxytune(arguments)
    if status:
        sys.exit(f"the run with trace={level} failed")


def bytes_per_token(folder: Path) -> float:
    files = sorted(folder.glob("traces/*.parquet"))
    tokens = sum(pyarrow.parquet.read_metadata(file).num_rows for file in files)
    return round(sum(file.stat().st_size for file in files) / tokens, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        calls = {level: lambda level=level: run(level, options.limit, folder) for level in LEVELS}
        seconds = timed(options.repeats, **calls)
        for level in LEVELS[1:]:
            found = ratio(seconds, level, "none") | {"bytes per token": bytes_per_token(folder / level)}
            print("run    ", level, json.dumps(found), flush=True)
    ensemble = family(0.005)
    requests = [GenerateRequest(prompt, 24) for prompt in prompts(8, 96)]
    asked = {level: [replace(request, trace=level) for request in requests] for level in LEVELS}
    engine = HFEngine(ensemble)
    calls = {level: lambda level=level: list(engine.generate(asked[level], SIX)) for level in LEVELS}
    seconds = timed(options.repeats, **calls)
    for level in LEVELS[1:]:
        print("engine ", level, json.dumps(ratio(seconds, level, "none")), flush=True)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
