"""How fast are MatchKL's solvers, and is the exact one never above the grid? Ratios of medians within one run.

    python scripts/benchmark_solver.py [--rows 64] [--vocabulary 32000] [--threads 2] [--repeats 9] [--rounds 5]

The yardstick is a straightforward 21-point grid over all rows at once: a softmax and two divergences per point. Every
timing has a process of its own, because the memory that one contestant leaves to the allocator would help the next.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from multiprocessing import get_context

import torch
from torch import Tensor

from proxytune.fusion import MatchKL

Logits = tuple[Tensor, Tensor, Tensor]
"""base [n, V], experts [T, n, V], antiexpert [n, V]."""


def language_like(rows: int, vocabulary: int, experts: int, seed: int) -> Logits:
    """Logits with what language models' have in common: Zipf's law, few likely tokens per row, sharp and flat rows.

    Base and antiexpert agree roughly; an expert moves every token a little and a few likely ones a lot.
    """
    g = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    def likely(scale: float) -> Tensor:
        tokens = torch.randint(vocabulary, (rows, 20), generator=g)
        height = scale * torch.rand(rows, 1, generator=g) * torch.rand(rows, 20, generator=g)
        return torch.zeros(rows, vocabulary).scatter_(1, tokens, height)

    zipf = -1.1 * torch.arange(1, vocabulary + 1).log()[torch.randperm(vocabulary, generator=g)]
    common = zipf + 1.5 * noise(rows, vocabulary) + likely(14.0)
    base = 1.2 * common + 0.8 * noise(rows, vocabulary)
    antiexpert = 0.8 * common + 1.0 * noise(rows, vocabulary)
    strength = 1.5 * torch.rand(experts, rows, 1, generator=g)
    tuned = [antiexpert + s * noise(rows, vocabulary) + likely(8.0) for s in strength]
    return base, torch.stack(tuned), antiexpert


def straightforward(base: Tensor, experts: Tensor, antiexpert: Tensor) -> Tensor:
    """The published search for one expert, written down as it reads; weights [n]."""

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return (a.exp() * (a - b)).sum(-1)

    d = experts[0] - antiexpert
    p, q, q1 = (logits.log_softmax(-1) for logits in (base, antiexpert, experts[0]))
    forward, backward = kl(q1, q), kl(q, q1)
    best, weights = torch.full_like(base[:, 0], torch.inf), torch.zeros_like(base[:, 0])
    for i in range(21):
        fused = (base + i / 10 * d).log_softmax(-1)
        loss = (kl(fused, p) - forward) ** 2 + (kl(p, fused) - backward) ** 2
        weights = torch.where(loss < best, i / 10, weights)
        best = torch.minimum(loss, best)
    return weights


def seconds(work: Callable[[], object], repeats: int) -> list[float]:
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return times


def loss_float64(logits: Logits, weights: Tensor) -> Tensor:
    """L of one expert, [n] in float64."""

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return (a.exp() * (a - b)).sum(-1)

    base, expert, antiexpert = (x.double() for x in (logits[0], logits[1][0], logits[2]))
    p, q, q1 = (x.log_softmax(-1) for x in (base, antiexpert, expert))
    fused = (base + weights.double()[:, None] * (expert - antiexpert)).log_softmax(-1)
    return (kl(fused, p) - kl(q1, q)) ** 2 + (kl(p, fused) - kl(q, q1)) ** 2


def check(logits: Logits) -> None:
    """Exact loss <= grid loss on every row; the grid's weights are the straightforward search's."""
    exact, grid = (MatchKL(solver=solver).fuse(*logits).weights[0] for solver in ("exact", "grid"))
    below = loss_float64(logits, grid) - loss_float64(logits, exact)
    same = (grid == straightforward(*logits)).sum().item()
    print(
        f"{len(below)} rows: exact below the grid on {(below > 0).sum()}, equal on {(below == 0).sum()}, above on "
        f"{(below < 0).sum()} (by at most {below.clamp(max=0).abs().max():.0e}); grid as straightforward on {same}; "
        f"weights from {exact.min():.2f} to {exact.max():.2f}"
    )


def median_ms(name: str, rows: int, vocabulary: int, threads: int, repeats: int, seed: int) -> float:
    """Median milliseconds of one solver in this process."""
    torch.set_num_threads(threads)
    logits = language_like(rows, vocabulary, 1, seed)
    rule = None if name == "straightforward" else MatchKL(solver=name)
    work = (lambda: straightforward(*logits)) if rule is None else (lambda: rule.fuse(*logits))
    return 1000 * statistics.median(seconds(work, repeats))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for option, default in (("rows", 64), ("vocabulary", 32_000), ("threads", 2), ("repeats", 9), ("rounds", 5)):
        parser.add_argument(f"--{option}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size = (options.rows, options.vocabulary, options.threads, options.repeats)
    print(f"[{options.rows} rows, {options.vocabulary} tokens], {options.threads} threads, torch {torch.__version__}")
    ratios: dict[str, list[float]] = {"grid": [], "exact": []}
    for seed in range(options.rounds):
        check(language_like(options.rows, options.vocabulary, 1, seed))
        times = {}
        for name in ("straightforward", *ratios):
            with get_context("spawn").Pool(1) as process:
                times[name] = process.apply(median_ms, (name, *size, seed))
        for name, ratio in ratios.items():
            ratio.append(times["straightforward"] / times[name])
        print("  " + ", ".join(f"{name} {ms:.1f} ms" for name, ms in times.items()))
    for name, ratio in ratios.items():
        print(f"{name}: {statistics.median(ratio):.1f} times as fast (from {min(ratio):.1f} to {max(ratio):.1f})")


if __name__ == "__main__":
    main()
