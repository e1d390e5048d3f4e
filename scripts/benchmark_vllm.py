"""What fused decoding costs inside vLLM, as ratios of times within one run (random weights, 32,000 tokens, greedy).

    make .venv-vllm
    .venv-vllm/bin/python scripts/benchmark_vllm.py [--repeats 5] [--requests 64] [--parts rules hf adapters] [--json F]

    fused / plain      base, expert and antiexpert with one static arm, over the base alone by vLLM's own model class
    (floor)            the multiplications of the three models over those of the base: what reading them must cost
    dynamic / static   MatchKL over static weights, in the same engine
    hf / fused         engine=hf over engine=vllm: answers of one length
    ragged             the same with answers of 1/8 to 15/8 of that length
    apart / together   base and two LoRA experts over the antiexpert: adapters merged into copies over adapters that
                       share the weights under them

Times alternate: each repetition takes every one in turn. Without a GPU: processor time of one thread, float32, no
compilation.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}

import torch
from benchmark_family import VOCAB, llama, ratio, timed, tokenizer
from peft import LoraConfig, get_peft_model
from vllm import LLM, SamplingParams
from vllm.platforms import current_platform

from proxytune.engines.hf import HFEngine
from proxytune.engines.requests import GenerateRequest, Prompt
from proxytune.engines.vllm import launch
from proxytune.engines.vllm.settings import arm_to_dict
from proxytune.fusion import MatchKL, Static
from proxytune.fusion.arm import Arm
from proxytune.models import FamilySpec, describe, load

EXPERT = ("expert:task",)
STATIC, DYNAMIC = Arm("static", rule=Static(1.0), experts=EXPERT), Arm("dynamic", rule=MatchKL(), experts=EXPERT)
BOTH = Arm("both", rule=Static((0.6, 0.4)), experts=("expert:one", "expert:two"))
Prompts = Sequence[tuple[int, ...]]
PARTS = ("rules", "hf", "adapters")
RATIOS = {
    "fused / plain": ("fused", "plain"),
    "dynamic / static": ("dynamic", "fused"),
    "hf / fused": ("hf", "fused"),
    "hf / fused, ragged": ("ragged_hf", "ragged_fused"),
    "apart / together": ("apart", "together"),
}


def save_family(folder: Path) -> FamilySpec:
    """A base of 8 layers of 768 and two models of 4 layers of 256."""
    sizes = {"base": (768, 8), "antiexpert": (256, 4), "task": (256, 4)}
    for seed, (name, (hidden, layers)) in enumerate(sizes.items()):
        llama(seed, hidden, layers).save_pretrained(folder / name)
        tokenizer().save_pretrained(folder / name)
    return FamilySpec.of(
        {"base": folder / "base", "antiexpert": folder / "antiexpert", "experts": {"task": folder / "task"}}
    )


def save_adapters(family: FamilySpec, folder: Path) -> FamilySpec:
    """Two LoRA experts over a model of the base's size, so that its weights count."""
    small = family.base.path
    experts = {}
    for name in ("one", "two"):
        model = get_peft_model(llama(0, 768, 8), LoraConfig(r=16, target_modules="all-linear", init_lora_weights=False))
        model.save_pretrained(folder / name)
        experts[name] = {"path": small, "adapter": folder / name}
    return FamilySpec.of({"base": family.antiexpert, "antiexpert": small, "experts": experts})


def start(arguments: dict[str, Any], requests: int) -> LLM:
    return LLM(
        **arguments,
        enforce_eager=current_platform.is_cpu(),
        enable_prefix_caching=False,  # or the second repetition would read no prompt
        max_num_seqs=requests,
    )


def start_fused(family: FamilySpec, requests: int) -> LLM:
    return start(launch.engine_arguments(describe(family), family, memory=1, max_model_len=512), requests)


@contextmanager
def merged_copies() -> Iterator[None]:
    """Adapters get copies of the model under them, as if none could be shared."""
    with mock.patch.object(launch, "is_plain_lora", lambda *_: False):
        yield


def by_vllm(llm: LLM, prompts: Prompts, lengths: Sequence[int], arm: Arm | None = None) -> list[tuple[int, ...]]:
    extra = None if arm is None else {"arm": arm_to_dict(arm)}
    settings = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True, extra_args=extra) for n in lengths]
    given: list[Any] = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
    return [tuple(found.outputs[0].token_ids) for found in llm.generate(given, settings, use_tqdm=False)]


def by_hf(engine: HFEngine, prompts: Prompts, lengths: Sequence[int]) -> list[tuple[int, ...]]:
    requests = [GenerateRequest(Prompt(p), n) for p, n in zip(prompts, lengths, strict=True)]
    answers = {i: answer.tokens for i, _, answer in engine.generate(requests, [STATIC])}
    return [answers[i] for i in range(len(requests))]


def floor(family: FamilySpec) -> float:
    """Multiplications a token takes in all members over those in the base: weights without the embedding, which is
    looked up, but with the head, which is tied to it."""
    counts = {role: sum(w.numel() for w in member.model.parameters()) for role, member in load(family).members.items()}
    return sum(counts.values()) / counts["base"]


def measure(folder: Path, count: int, repeats: int, parts: Sequence[str]) -> dict[str, dict[str, Any]]:
    family = save_family(folder)
    generator = torch.Generator().manual_seed(0)
    prompts = [
        tuple(torch.randint(3, VOCAB, (n,), generator=generator).tolist())
        for n in torch.randint(16, 81, (count,), generator=generator).tolist()
    ]
    equal, ragged = [64] * count, [8 + 112 * i // max(1, count - 1) for i in range(count)]
    fused = start_fused(family, count)
    calls: dict[str, Callable[[], object]] = {"fused": lambda: by_vllm(fused, prompts, equal, STATIC)}
    if "rules" in parts:
        settings = {"dtype": "float32", "max_model_len": 512, "kv_cache_memory_bytes": 2**30}  # "auto" is 16 bits
        plain = start({"model": str(folder / "base"), **settings}, count)
        calls["plain"] = lambda: by_vllm(plain, prompts, equal)
        calls["dynamic"] = lambda: by_vllm(fused, prompts, equal, DYNAMIC)
    if "hf" in parts:
        hf = HFEngine(load(family), batch_size=count)
        assert by_hf(hf, prompts, equal) == by_vllm(fused, prompts, equal, STATIC), "both engines answer the same"
        calls["hf"] = lambda: by_hf(hf, prompts, equal)
        calls["ragged_fused"] = lambda: by_vllm(fused, prompts, ragged, STATIC)
        calls["ragged_hf"] = lambda: by_hf(hf, prompts, ragged)
    if "adapters" in parts:
        adapted = save_adapters(family, folder)
        together = start_fused(adapted, count)
        with merged_copies():
            apart = start_fused(adapted, count)
        calls["together"] = lambda: by_vllm(together, prompts, equal, BOTH)
        calls["apart"] = lambda: by_vllm(apart, prompts, equal, BOTH)
    clock = time.process_time if current_platform.is_cpu() else time.perf_counter
    seconds = timed(repeats, clock, **calls)
    found = {name: ratio(seconds, *pair) for name, pair in RATIOS.items() if set(pair) <= seconds.keys()}
    return {"(floor)": {"ratio": round(floor(family), 2)}, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder, mock.patch.dict(os.environ, {"PROXYTUNE_CACHE": f"{folder}/cache"}):
        figures = measure(Path(folder), given.requests, given.repeats, given.parts)
    for name, found in figures.items():
        print(f"{name:20} {found['ratio']:6.2f}  {found.get('range', '')}")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
