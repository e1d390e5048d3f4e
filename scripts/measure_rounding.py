"""How far answers depend on what is computed with them: batch sizes, other arms, fewer requests.

    python scripts/measure_rounding.py [--model PATH] [--requests 24] [--dtype auto]

Without a model: the tests' tiny family (wide random weights, two experts), five arms. With a model: only that model.
Every figure compares with one pass of all requests and arms at batch size 32: the largest difference between two
log-probabilities of the same token, and the number of greedy answers whose texts differ.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1"}
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from tiny import tiny_family

from proxytune.engines.hf import HFEngine
from proxytune.engines.requests import GenerateRequest, Prompt, ScoreRequest
from proxytune.fusion import MatchKL, Static
from proxytune.fusion.arm import Arm
from proxytune.models import Ensemble, FamilySpec, Source, load

NEW_TOKENS = 32
Said = dict[str, dict[int, Any]]
"""Answers by arm and request."""
FUSED = (
    Arm("proxy", rule=Static(1.0), experts=("expert:math",)),
    Arm("dynamic", rule=MatchKL(), experts=("expert:math",)),
    Arm("grid", rule=MatchKL(solver="grid"), experts=("expert:math",)),
    Arm("joint", rule=MatchKL(experts="joint"), experts=("expert:math", "expert:trivia")),
)


def prompts(ensemble: Ensemble, count: int) -> list[Prompt]:
    """Questions of different lengths."""
    rng = random.Random(0)
    texts = []
    for _ in range(count):
        things = [f"{rng.randint(2, 99)} {rng.choice(('apples', 'coins', 'boxes'))}" for _ in range(rng.randint(1, 8))]
        texts.append(f"Question: how many are {', '.join(things)} in all?\nAnswer:")
    return [Prompt(tuple(ensemble.tokenizer.encode(text))) for text in texts]


def answer(ensemble: Ensemble, arms: Sequence[Arm], asked: Sequence[Prompt], batch_size: int) -> tuple[Said, Said]:
    """What the arms score and what they generate."""
    continuation = tuple(ensemble.tokenizer.encode(" There are 12 of them in all."))
    engine = HFEngine(ensemble, batch_size)
    scored: Said = {arm.name: {} for arm in arms}
    generated: Said = {arm.name: {} for arm in arms}
    for i, arm, score in engine.score([ScoreRequest(prompt, continuation) for prompt in asked], arms):
        scored[arm][i] = score
    for i, arm, text in engine.generate([GenerateRequest(prompt, NEW_TOKENS) for prompt in asked], arms):
        generated[arm][i] = text
    return scored, generated


def compare(change: str, ours: tuple[Said, Said], theirs: tuple[Said, Said]) -> None:
    """One line per arm, over the answers that `theirs` has."""
    (scored, generated), (other_scored, other_generated) = ours, theirs
    for arm, answers in other_scored.items():
        largest = max(
            abs(a - b) for i, one in answers.items() for a, b in zip(one.logprobs, scored[arm][i].logprobs, strict=True)
        )
        texts = other_generated[arm]
        differing = sum(one.tokens != generated[arm][i].tokens for i, one in texts.items())
        print(f"{change:<24} {arm:<8} log-probabilities: {largest:.0e}   answers: {differing} of {len(texts)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder, a hub id or a GGUF file")
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--dtype", default="auto")
    given = parser.parse_args()
    if given.model is None:
        ensemble, arms = tiny_family(), [Arm("base"), *FUSED]
    else:
        ensemble, arms = load(FamilySpec(Source(given.model, dtype=given.dtype))), [Arm("base")]
    asked = prompts(ensemble, given.requests)
    together = answer(ensemble, arms, asked, 32)
    compare("the same again", together, answer(ensemble, arms, asked, 32))
    for size in (1, 7):
        compare(f"batch size {size}", together, answer(ensemble, arms, asked, size))
    compare("a third of the requests", together, answer(ensemble, arms, asked[: len(asked) // 3], 32))
    for arm in arms[1:]:
        compare("the arm alone", together, answer(ensemble, [arm], asked, 32))


if __name__ == "__main__":
    main()
