"""What speculation saves on the miniature, as ratios within one run.

    python scripts/speculation.py [--limit 16] [--repeats 5] [--tasks miniature_gsm ...] [--batch 1 8 32]

Each row is the time of an arm's answers over that without drafts (median and range; the settings take turns), tokens of
one pass of the base, and the share of accepted drafts. "auto" is engine.speculate=auto, "6" drafts of up to six
tokens, "sibling" drafts from the answers of the arm with another weight (such as 1.5 for 1).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from proxytune.engines.hf import HFEngine
from proxytune.engines.requests import Generated, GenerateRequest
from proxytune.experiment import run
from proxytune.fusion import MatchKL, Static
from proxytune.fusion.arm import Arm
from proxytune.miniature import family


class Asked(HFEngine):
    """Remembers what it is asked."""

    asked: tuple[Sequence[GenerateRequest], Sequence[Arm]]

    def generate(
        self, requests: Sequence[GenerateRequest], arms: Sequence[Arm], progress: Callable[[int], object] | None = None
    ) -> Iterator[tuple[int, str, Generated]]:
        self.asked = requests, arms
        return super().generate(requests, arms, progress)


def miniature(task: str, limit: int) -> Asked:
    """The engine of a run of one arm, with its models and what it was asked."""
    made: list[Asked] = []

    def factory(ensemble):  # type: ignore[no-untyped-def]
        made.append(Asked(ensemble))
        return made[-1]

    with tempfile.TemporaryDirectory() as folder:
        proxy = {"proxy": {"rule": Static(1.0), "experts": "own"}}
        run(family(), [task], proxy, factory, output_dir=folder, limit=limit, progress=False)
    return made[-1]


def compare(engine: Asked, arm: Arm, batch: int, repeats: int) -> Iterator[str]:
    """A row of the table for each setting."""
    requests, _ = engine.asked
    other = replace(arm, name="other", rule=Static(1.5))
    known = {index: answer.tokens for index, _, answer in HFEngine(engine.ensemble).generate(requests, [other])}
    beside = [replace(request, drafts=(known[index],)) for index, request in enumerate(requests)]
    settings = {"off": (0, requests), "auto": ("auto", requests), "6": (6, requests), "sibling": ("auto", beside)}
    seconds: dict[str, list[float]] = {name: [] for name in settings}
    engines = {name: HFEngine(engine.ensemble, batch, speculate) for name, (speculate, _) in settings.items()}
    answers = {}
    for turn in range(repeats + 1):
        for name, (_, asked) in settings.items():
            start = time.process_time()
            found = {index: answer.tokens for index, _, answer in engines[name].generate(asked, [arm])}
            if turn:
                seconds[name].append(time.process_time() - start)
            assert answers.setdefault("tokens", found) == found, "speculation has changed an answer"
    for name in list(settings)[1:]:
        ratios = [one / off for one, off in zip(seconds[name], seconds["off"], strict=True)]
        meter = engines[name].meter
        right = f"{meter.accepted / meter.drafted:.2f}" if meter.drafted else "-"
        per_pass = 1 + meter.accepted / max(1, meter.passes)
        spread = f"{statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f}"
        yield f"{batch} | {name} | {spread} | {per_pass:.1f} | {right} |"


def tables(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    print("| task | arm | batch | drafts | time | range | tokens a pass | right |")
    print("|---|---|---:|---|---:|---|---:|---:|")
    for task in options.tasks:
        engine = miniature(task, options.limit)
        [proxy] = engine.asked[1]
        for arm in (proxy, replace(proxy, name="dynamic", rule=MatchKL())):
            for batch in options.batch:
                for row in compare(engine, arm, batch, options.repeats):
                    print(f"| {task.removeprefix('miniature_')} | {arm.name} | {row}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--limit", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tasks", nargs="+", default=["miniature_gsm", "miniature_cnn"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8, 32])
    tables(parser.parse_args())


if __name__ == "__main__":
    main()
