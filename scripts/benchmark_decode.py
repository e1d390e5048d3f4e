"""Decoding side by side: the plain base, the directly tuned model, and fused arms with and without drafts.

`python scripts/benchmark.py decode` times, in turns within one run and on the same prompts:

    base, loop        the base alone, token by token, without an engine
    base, generate    the base alone by transformers' generate
    tuned, loop       the tuned model alone
    papers' loop      proxy-tuning written plainly: three models, three caches
    static, dynamic   the engine without drafts, with the rules Static(1.0) and MatchKL()
    ... drafts        the same with engine.speculate=auto
    ... sibling       the same, drafting from the answers of another arm (alpha 0.5)
    ... compiled      without drafts, with engine.compile=true; compiled in the round that warms up (miniature only)
    ... compiled, drafts

Every figure is a time over that of "base, generate". Families: random (8 layers of 512; small models 2 of 256) and the
miniature, for its arithmetic and its summaries. `overhead` times the engine on models of one layer of width 64, and
these models alone.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from benchmark_family import EXPERT, PROXY, family, prompts, ratio, timed
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from transformers import DynamicCache, LlamaForCausalLM, PreTrainedModel

import proxytune
from proxytune.engines.hf import HFEngine
from proxytune.engines.requests import GenerateRequest, Prompt
from proxytune.fusion import MatchKL, Static
from proxytune.fusion.arm import Arm
from proxytune.models import load
from proxytune.models.ensemble import Ensemble

Calls = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Setting:
    """A family, what it is asked, and how many requests are worked on together."""

    ensemble: Ensemble
    expert: str
    requests: Sequence[GenerateRequest]
    batch: int

    @property
    def rows(self) -> list[list[tuple[int, ...]]]:
        """The prompts in batches."""
        prompts = [request.prompt.tokens for request in self.requests]
        return [prompts[start : start + self.batch] for start in range(0, len(prompts), self.batch)]

    @property
    def new_tokens(self) -> int:
        return self.requests[0].max_new_tokens

    def arm(self, rule: MatchKL | Static) -> Arm:
        return Arm("fused", rule=rule, experts=(self.expert,))

    def model(self, role: str) -> PreTrainedModel:
        return self.ensemble[role].model

    def answers(
        self, arm: Arm, speculate: str, requests: Sequence[GenerateRequest] | None = None
    ) -> dict[int, tuple[int, ...]]:
        """What the engine answers, by the request's index."""
        return self.answers_by(HFEngine(self.ensemble, self.batch, speculate), arm, requests)

    def answers_by(
        self, engine: HFEngine, arm: Arm, requests: Sequence[GenerateRequest] | None = None
    ) -> dict[int, tuple[int, ...]]:
        asked = self.requests if requests is None else requests
        return {index: answer.tokens for index, _, answer in engine.generate(asked, [arm])}

    def with_drafts(self, arm: Arm) -> list[GenerateRequest]:
        """The requests with the arm's answers as drafts."""
        found = self.answers(arm, "off")
        return [replace(request, drafts=(found[index],)) for index, request in enumerate(self.requests)]


TEXTS = {"gsm": "question : {question} answer :", "cnn": "article : {article} highlights :"}
"""The prompts of the miniature's tasks."""


def miniature(task: str, count: int) -> tuple[Ensemble, str, list[GenerateRequest]]:
    """A task of the miniature, 16 new tokens per answer, no stop string."""
    with initialize_config_dir(str(Path(proxytune.__file__).parent.parent / "conf"), version_base=None):
        spec = instantiate(compose("run", ["models=miniature", "task=miniature"]).models)
    ensemble = load(spec, ["base", "antiexpert", f"expert:{task}", f"tuned:{task}"])
    ensemble.end_tokens = []
    items = [json.loads(line) for line in (Path(spec.data_dir) / task / "test.jsonl").read_text().splitlines()]
    texts = [TEXTS[task].format(**item) for item in items[:count]]
    requests = [GenerateRequest(Prompt(tuple(ensemble.tokenizer.encode(text))), 16) for text in texts]
    return ensemble, f"expert:{task}", requests


@torch.inference_mode()
def loop(models: Sequence[PreTrainedModel], rows: Sequence[Sequence[int]], new_tokens: int) -> torch.Tensor:
    """One model alone, or base, expert and antiexpert fused: a left-padded batch, a cache each, greedy."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    caches = [DynamicCache(config=model.config) for model in models]
    answer = []
    for _ in range(new_tokens):
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        base, *pair = (
            model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1).logits[
                :, -1
            ]
            for model, cache in zip(models, caches, strict=True)
        )
        ids = (base + (pair[0] - pair[1]) if pair else base).argmax(-1, keepdim=True)
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        answer.append(ids)
    return torch.cat(answer, dim=1)


@torch.inference_mode()
def generate(model: PreTrainedModel, rows: Sequence[Sequence[int]], new_tokens: int) -> torch.Tensor:
    """By transformers: greedy, always `new_tokens`."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    lengths = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
    return model.generate(ids, attention_mask=mask, do_sample=False, pad_token_id=0, **lengths)


def contenders(setting: Setting) -> Calls:
    """What is timed, by name."""
    alone = {role: setting.model(role) for role in setting.ensemble.members}
    tuned = next(role for role in alone if role.startswith("tuned"))
    three = [alone["base"], alone[setting.expert], alone["antiexpert"]]

    def each(work: Callable[[Sequence[Sequence[int]]], object]) -> Callable[[], object]:
        return lambda: [work(rows) for rows in setting.rows]

    calls: Calls = {
        "base, loop": each(lambda rows: loop([alone["base"]], rows, setting.new_tokens)),
        "base, generate": each(lambda rows: generate(alone["base"], rows, setting.new_tokens)),
        "tuned, loop": each(lambda rows: loop([alone[tuned]], rows, setting.new_tokens)),
        "small models, loop": each(lambda rows: [loop([model], rows, setting.new_tokens) for model in three[1:]]),
        "papers' loop": each(lambda rows: loop(three, rows, setting.new_tokens)),
    }
    drafted = setting.with_drafts(setting.arm(Static(0.5)))
    for name, rule in (("static", Static(1.0)), ("dynamic", MatchKL())):
        arm = setting.arm(rule)
        calls[name] = lambda arm=arm: setting.answers(arm, "off")  # type: ignore[misc]
        calls[f"{name}, drafts"] = lambda arm=arm: setting.answers(arm, "auto")  # type: ignore[misc]
        calls[f"{name}, sibling"] = lambda arm=arm: setting.answers(arm, "auto", drafted)  # type: ignore[misc]
    return calls


def compiled(setting: Setting) -> Calls:
    calls: Calls = {}
    for drafts, speculate in (("", "off"), (", drafts", "auto")):
        engine = HFEngine(setting.ensemble, setting.batch, speculate, compile=True)
        for name, rule in (("static", Static(1.0)), ("dynamic", MatchKL())):
            calls[f"{name}, compiled{drafts}"] = partial(setting.answers_by, engine, setting.arm(rule))
    return calls


def agreement(setting: Setting) -> str:
    """How many answers of the static arm are those of the papers' loop, without drafts and with them."""
    arm = setting.arm(Static(1.0))
    three = [setting.model(role) for role in ("base", setting.expert, "antiexpert")]
    theirs = [tuple(row) for rows in setting.rows for row in loop(three, rows, setting.new_tokens).tolist()]
    equal = [
        sum(setting.answers(arm, speculate)[index] == tokens for index, tokens in enumerate(theirs))
        for speculate in ("off", "auto")
    ]
    return f"{equal[0]} and {equal[1]} of {len(theirs)}"


def three(ensemble: Ensemble) -> list[LlamaForCausalLM]:
    return [ensemble[role].model for role in ("base", EXPERT, "antiexpert")]


def decode(
    ensemble: Ensemble,
    expert: str,
    requests: Sequence[GenerateRequest],
    batches: Sequence[int],
    repeats: int,
    with_compiled: bool = True,
) -> dict[str, object]:
    """By batch size: the time of each contender over that of the base by transformers' generate."""
    figures: dict[str, object] = {}
    for batch in batches:
        setting = Setting(ensemble, expert, requests[: max(batch, 4)], batch)
        seconds = timed(
            repeats, time.process_time, **contenders(setting), **(compiled(setting) if with_compiled else {})
        )
        over = {call: ratio(seconds, call, "base, generate") for call in seconds}
        figures[f"batch {batch}"] = {call: [one["ratio"], one["range"]] for call, one in over.items()}
        print(f"batch {batch}: answers equal to the papers' loop, without and with drafts: {agreement(setting)}")
        for call, one in over.items():
            print(f"    {call:25} {one['ratio']:6.2f} {one['range']}", flush=True)
    return figures


def decode_random(repeats: int) -> dict[str, object]:
    requests = [GenerateRequest(prompt, 16) for prompt in prompts(8, 64)]
    return decode(family(None, hidden=512, layers=8, small=256), EXPERT, requests, (1, 8), repeats, with_compiled=False)


def overhead(repeats: int) -> dict[str, object]:
    """One arm of three models of no size, one request at a time, over these models in loops."""
    ensemble = family(None, hidden=64, layers=1, small=64, vocab=64)
    requests = [GenerateRequest(Prompt(tuple(range(8))), 64)] * 4
    rows, models = [[tuple(range(8))]] * 4, three(ensemble)

    def loops() -> None:
        for one in rows:
            for model in models:
                loop([model], one, 64)

    seconds = timed(
        repeats,
        time.process_time,
        engine=lambda: list(HFEngine(ensemble, 1, "off").generate(requests, [PROXY])),
        models=loops,
    )
    spent = [1000 * (a - b) / (4 * 64) for a, b in zip(seconds["engine"], seconds["models"], strict=True)]
    return ratio(seconds, "engine", "models") | {"ms per token": round(statistics.median(spent), 3)}
