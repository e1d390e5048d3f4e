"""What the engine saves, as ratios within one run, mostly on families made here (random weights, 32,000 tokens).

    python scripts/benchmark.py [decode overhead ...] [--repeats 3] [--requests 8] [--json FILE]

Without names all parts but these run:

    decode     fused arms of the miniature's arithmetic against its plain base, its tuned model and the papers' loop
               (`benchmark_decode.py`); decode-cnn: of its summaries; decode-random: of a base of 8 layers of 512 and
               small models of 2 of 256
    overhead   the engine on tiny models (one layer of width 64): its time over that of these models in loops

    sweep      21 static alphas score a teacher-forced task: time over that of one arm (base of 44 M parameters; what an
               arm adds goes with the vocabulary alone, so larger bases bring the quotient nearer to 1)
    arms       six arms of generation together: time over that of six runs of one arm each, and equal answers
    loop       one proxy arm by the engine: time over that of a plain loop over three transformers models
    start      processor seconds until each of some commands has ended that compute nothing
    refill     answers of ragged length, waiting requests entering as others leave: time over that without entering;
               "even", as many tokens in answers of one length, is the most that entering could reach

`arms` runs on two families. "random": the members have nothing in common, so that arms part at the first token and
share little but the prompts: the worst case. "near": expert and tuned are slight changes of antiexpert and base, so
that arms agree for a while, as tuned models do.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from unittest import mock

import torch
from benchmark_decode import decode, decode_random, miniature, overhead, three
from benchmark_decode import loop as papers_loop
from benchmark_family import EXPERT, PROXY, SIX, family, prompts, ratio, timed

from proxytune.engines.hf import HFEngine
from proxytune.engines.hf import decode as generate
from proxytune.engines.requests import GenerateRequest, ScoreRequest
from proxytune.fusion import Static
from proxytune.fusion.arm import Arm
from proxytune.models.ensemble import Ensemble


def sweep(ensemble: Ensemble, count: int, repeats: int) -> dict[str, object]:
    continuation = tuple(range(100, 116))
    requests = [ScoreRequest(prompt, continuation) for prompt in prompts(count, 128)]
    arms = [Arm(f"alpha {step / 10}", rule=Static(step / 10), experts=(EXPERT,)) for step in range(21)]
    engine = HFEngine(ensemble)
    seconds = timed(
        repeats,
        all=lambda: list(engine.score(requests, arms)),
        one=lambda: list(engine.score(requests, arms[10:11])),
    )
    return ratio(seconds, "all", "one")


def arms(ensemble: Ensemble, count: int, repeats: int, new_tokens: int = 24) -> dict[str, object]:
    requests = [GenerateRequest(prompt, new_tokens) for prompt in prompts(count, 96)]
    engine = HFEngine(ensemble)

    def answers(some: Sequence[Arm]) -> dict[tuple[int, str], tuple[int, ...]]:
        return {(index, name): answer.tokens for index, name, answer in engine.generate(requests, some)}

    together = answers(SIX)
    equal = sum(tokens == together[key] for arm in SIX for key, tokens in answers([arm]).items())
    prefixes = len({(index, tokens[:n]) for (index, _), tokens in together.items() for n in range(new_tokens)})
    seconds = timed(repeats, together=lambda: answers(SIX), separate=lambda: [answers([arm]) for arm in SIX])
    return ratio(seconds, "together", "separate") | {
        "equal answers": f"{equal} of {len(together)}",
        "rows over arms": round(prefixes / (len(together) * new_tokens), 3),
    }


def loop(ensemble: Ensemble, count: int, repeats: int, new_tokens: int = 24) -> dict[str, object]:
    requests = [GenerateRequest(prompt, new_tokens) for prompt in prompts(count, 64)]
    engine = HFEngine(ensemble)
    seconds = timed(
        repeats,
        engine=lambda: list(engine.generate(requests, [PROXY])),
        loop=lambda: papers_loop(three(ensemble), [request.prompt.tokens for request in requests], new_tokens),
    )
    ours = {index: answer.tokens for index, _, answer in engine.generate(requests, [PROXY])}
    theirs = papers_loop(three(ensemble), [request.prompt.tokens for request in requests], new_tokens).tolist()
    equal = sum(ours[index] == tuple(tokens) for index, tokens in enumerate(theirs))
    return ratio(seconds, "engine", "loop") | {"equal answers": f"{equal} of {count}"}


def refill(ensemble: Ensemble, repeats: int, batch: int = 8) -> dict[str, object]:
    """Answer lengths as of an exponential distribution, cut at four times its mean; one arm."""
    generator = torch.Generator().manual_seed(0)
    waiting = prompts(6 * batch, 32)
    lengths = (12 * torch.empty(len(waiting)).exponential_(generator=generator)).clamp(1, 48).round().int().tolist()
    mean = round(sum(lengths) / len(lengths))
    engine = HFEngine(ensemble, batch)
    ragged = [GenerateRequest(prompt, length) for prompt, length in zip(waiting, lengths, strict=True)]
    even = [GenerateRequest(prompt, mean) for prompt in waiting]

    def groups() -> None:
        with mock.patch.object(generate, "ENTRY", math.inf):
            list(engine.generate(ragged, [PROXY]))

    seconds = timed(
        repeats,
        entering=lambda: list(engine.generate(ragged, [PROXY])),
        groups=groups,
        even=lambda: list(engine.generate(even, [PROXY])),
    )
    floor = ratio(seconds, "even", "groups")
    return ratio(seconds, "entering", "groups") | {
        "even": floor["ratio"],
        "tokens": [sum(lengths), mean * len(lengths)],
    }


def start(repeats: int) -> dict[str, float]:
    """Medians of the processor seconds (user and system) of whole processes."""

    def processor_seconds(*arguments: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    commands = {
        "python alone": ["-c", "pass"],
        "import proxytune": ["-c", "import proxytune"],
        "--help": ["-m", "proxytune", "--help"],
        "run --help": ["-m", "proxytune", "run", "--help"],
        "table": ["-m", "proxytune", "table", "paper=liu2024"],
        "import FusedCausalLM": ["-c", "from proxytune import FusedCausalLM"],
    }
    return {
        name: round(statistics.median(processor_seconds(*arguments) for _ in range(repeats)), 2)
        for name, arguments in commands.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", help="the parts to run; none: all but decode... and overhead")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    start = time.perf_counter()
    parts: dict[str, Callable[[], Mapping[str, object]]] = {
        "start": lambda: start(options.repeats),
        "sweep": lambda: sweep(family(None, hidden=512, layers=8), options.requests, options.repeats),
        "arms, near family": lambda: arms(family(0.005), options.requests, options.repeats),
        "arms, random family": lambda: arms(family(None), options.requests, options.repeats),
        "loop": lambda: loop(family(None), options.requests, options.repeats),
        "refill": lambda: refill(family(None), options.repeats),
        "decode": lambda: decode(*miniature("gsm", 32), (1, 8, 32), options.repeats),
        "decode-cnn": lambda: decode(*miniature("cnn", 32), (1, 8, 32), options.repeats),
        "decode-random": lambda: decode_random(options.repeats),
        "overhead": lambda: overhead(options.repeats),
    }
    figures: dict[str, object] = {}
    wanted = options.parts or [name for name in parts if not name.startswith(("decode", "overhead"))]
    if unknown := set(wanted) - set(parts):
        parser.error(f"unknown parts {', '.join(sorted(unknown))}: choose of {'; '.join(parts)}")
    for name in wanted:
        figures[name] = parts[name]()
        print(f"{name:20}", figures[name], flush=True)
    figures["environment"] = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "seconds": round(time.perf_counter() - start),
    }
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
