"""Runs drawn at random (families, adapters, tasks, rules, batch sizes) against a reference written out here.

The reference reads every prompt and answer as one row, in one pass, without a cache, a batch or a store, with models
that transformers and PEFT load, and fuses in float64 from the formulas. What is compared: the tokens of every prompt,
every token that an arm chose and the weights behind it, why the answer ended, its text, every log-probability, and what
the metrics make of them.

PROXYTUNE_RANDOM_RUNS is how many are drawn (default 12), PROXYTUNE_RANDOM_START the first one's number.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.tasks import TaskManager
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from test_text import llama
from tiny import CHAT, tiny_gpt2, tiny_llama, tiny_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM, MistralConfig, MistralForCausalLM

from proxytune.engines.hf import HFEngine
from proxytune.engines.requests import Generated, GenerateRequest, Prompt
from proxytune.experiment import run
from proxytune.fusion import MatchKL, Static
from proxytune.fusion.contrastive import Contrastive
from proxytune.fusion.plausible import Plausible
from proxytune.tasks import registry

RUNS = int(os.environ.get("PROXYTUNE_RANDOM_RUNS", "12"))
START = int(os.environ.get("PROXYTUNE_RANDOM_START", "0"))
NEAR = 5e-3
"""Float32 may move logits and log-probabilities so far; of tokens nearer to each other than that, either may win."""
WORDS = [
    "apples",
    "coins",
    "the red box",
    "Paris",
    "12",
    "3.5",
    "Zoë",
    "🍎",
    "river?",
    "return x",
    "  two",
    "(A)",
    "x\ty",
]
TASKS = {
    "open": ("generate_until", "exact_match", "generation_kwargs: {until: %(until)s, max_gen_toks: %(length)d}"),
    "sampled": (
        "generate_until",
        "exact_match",
        "generation_kwargs: {until: %(until)s, max_gen_toks: %(length)d, do_sample: true, temperature: 0.7}",
    ),
    "choice": ("multiple_choice", "acc", 'doc_to_choice: "{{choices}}"'),
    "single": ("loglikelihood", "acc", ""),
}
"""Output type, metric and what else the YAML says."""
YAML = """
task: {name}
dataset_path: json
test_split: test
output_type: {kind}
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: {target}
{extra}
metric_list: [{{metric: {metric}, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0, proxytune: {{metric: {metric}, files: {{test: items.jsonl}},
  columns: {{question: text, answer: text, choices: texts, gold: index of choices}}}}}}
"""


# --- drawing ----------------------------------------------------------------------------------------------------------


@dataclass
class Drawn:
    """One run: where its models are, what it is asked, and how."""

    family: dict[str, Any]
    arms: dict[str, dict[str, Any]]
    task: str
    yaml: str
    items: list[dict[str, Any]]
    batch_size: int | None
    seed: int
    ends: dict[str, list[int]]
    """By role, what its generation config lists."""
    until: list[str]
    length: int
    chat: dict[str, str | None] = field(default_factory=dict)
    """The system prompts of the roles with a chat prompt."""


@cache
def tokenizer_of(kind: str) -> Any:
    tokenizer = tiny_tokenizer() if kind == "bytes" else llama()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.chat_template = CHAT
    return tokenizer


def model_of(kind: str, size: int, seed: int) -> Any:
    if kind == "llama":
        return tiny_llama(size, seed=seed)
    if kind == "gpt2":
        return tiny_gpt2(size, seed=seed)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"vocab_size": size, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
    shape |= {"max_position_embeddings": 256}
    torch.manual_seed(seed)
    if kind == "neox":
        model: Any = GPTNeoXForCausalLM(GPTNeoXConfig(**shape))
    else:
        model = MistralForCausalLM(MistralConfig(**shape, num_key_value_heads=2, sliding_window=7))
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.4)
    return model.eval()


PROJECTIONS = {"gpt2": ["c_attn"], "neox": ["query_key_value"]}


def adapter_over(base: Any, kind: str, model: str, seed: int, folder: Path) -> None:
    """Writes an adapter of that kind over a model of that kind in memory."""
    shared = {"task_type": "CAUSAL_LM", "target_modules": PROJECTIONS.get(model, ["k_proj", "v_proj"])}
    shared["fan_in_fan_out"] = model == "gpt2"
    if kind == "ia3":
        config: Any = IA3Config(**shared, feedforward_modules=[])
    else:
        options = {"bias": "all"} if kind == "lora bias" else {"use_dora": kind == "dora"}
        config = LoraConfig(r=3, **shared, **options, init_lora_weights=False)
    torch.manual_seed(seed)
    model = get_peft_model(base, config)
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, mean=1.0 if "ia3" in name or "magnitude" in name else 0.0, std=0.3)
    model.save_pretrained(folder)


def draw(number: int, folder: Path) -> Drawn:
    """The run of this number; its models are written under `folder`."""
    random = Random(number)
    tokens = random.choice(["bytes", "llama"])
    tokenizer, kinds = tokenizer_of(tokens), ["llama", "gpt2", "neox", "mistral"]
    size, ends = len(tokenizer), {}

    def write(role: str, kind: str, seed: int) -> str:
        model, path = model_of(kind, size + random.choice([0, 3, 12]), seed), folder / role.replace(":", "-")
        ends[role] = [2, *random.sample(range(3, size), random.choice([0, 0, 1, 20]))]
        model.generation_config.eos_token_id = ends[role]
        if kind == "llama" and random.random() < 0.2:
            model.config.max_position_embeddings = 64
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
        return str(path)

    small = random.choice(kinds)
    family: dict[str, Any] = {"base": {"path": write("base", random.choice(kinds), number)}}
    family["antiexpert"] = {"path": write("antiexpert", small, number + 1)}
    family["experts"], family["tuned"], chat = {}, {}, {}
    adapters = ["lora", "lora bias", "dora", "ia3"]
    for i, name in enumerate(["a", "b"][: random.choice([1, 1, 2])]):
        how = random.choice(["model", "model", "antiexpert", *adapters])
        role, source = f"expert:{name}", dict(family["antiexpert"])
        if how == "model":
            source = {"path": write(role, small if random.random() < 0.5 else random.choice(kinds), number + 2 + i)}
        elif how != "antiexpert":
            plain = AutoModelForCausalLM.from_pretrained(source["path"])
            adapter_over(plain, how, small, number + i, folder / f"adapter-{name}")
            source["adapter"] = str(folder / f"adapter-{name}")
        ends.setdefault(role, ends["antiexpert"])
        if random.random() < 0.3:
            chat[role] = random.choice([None, "Be brief."])
            source["chat"] = {"system_prompt": chat[role], "response_prefixes": ["Answer:"]}
        family["experts"][name] = source
    if random.random() < 0.5:
        family["tuned"]["a"] = {"path": write("tuned:a", random.choice(kinds), number + 9)}
    task = random.choice(list(TASKS))
    kind, metric, extra = TASKS[task]
    until, length = random.choice([[], ["\n"], ["e", " 1"], [" x", "ap"]]), random.choice([1, 6, 14])
    extra = extra % {"until": json.dumps(until), "length": length} if kind == "generate_until" else extra
    target = "gold" if task == "choice" else "answer"
    items = [
        {
            "question": " ".join(random.choices(WORDS, k=random.randint(1, 9))),
            "answer": random.choice(WORDS),
            "choices": random.sample(WORDS, 3),
            "gold": random.randrange(3),
        }
        for _ in range(random.randint(1, 5))
    ]
    return Drawn(
        family,
        draw_arms(random, list(family["experts"]), bool(family["tuned"])),
        f"{task}{number}",
        YAML.format(name=f"{task}{number}", kind=kind, metric=metric, extra=extra, target=target),
        items,
        random.choice([1, 2, 3, None]),
        random.choice([0, 0, number]),
        ends,
        until,
        length,
        chat,
    )


def draw_arms(random: Random, experts: list[str], tuned: bool) -> dict[str, dict[str, Any]]:
    """The base, perhaps other models alone, and rules."""
    some = [random.choice(experts)] if random.random() < 0.5 else experts
    weight = random.choice([0.0, 0.5, 1.0, -0.7, 2.0])
    each = [random.choice([0.3, -1.0, 1.5]) for _ in some]
    rules = {
        "static": {"rule": Static(weight), "experts": some},
        "each": {"rule": Static(tuple(each)), "experts": some},
        "grid": {"rule": MatchKL(solver="grid", step=random.choice([0.1, 0.5])), "experts": some},
        "exact": {"rule": MatchKL(high=random.choice([1.0, 2.0])), "experts": some},
        "plausible": {"rule": Plausible(weight, min_p=random.choice([0.0, 0.01]), top_p=0.95), "experts": some},
        "contrast": {"rule": Contrastive(random.choice([0.0, 0.1]))},
    }
    alone = {f"only {name}": {"model": f"expert:{name}"} for name in experts} | {"anti": {"model": "antiexpert"}}
    alone |= {"upper": {"model": "tuned:a"}} if tuned else {}
    if len(experts) == 2 and random.random() < 0.3:
        rules["other anti"] = {"rule": Static(weight), "experts": ["a"], "antiexpert": "b"}
    chosen = random.sample(list(rules), random.randint(1, 3)) + random.sample(list(alone), random.randint(0, 2))
    return {"base": {"model": "base"}} | {name: (rules | alone)[name] for name in chosen}


# --- the reference ----------------------------------------------------------------------------------------------------


class Reference:
    """The models of a run, loaded one by one, and what they and the arms make of a row of tokens."""

    def __init__(self, drawn: Drawn) -> None:
        self.drawn, self.models = drawn, {}
        family = drawn.family
        sources = {"base": family["base"], "antiexpert": family["antiexpert"]}
        sources |= {
            f"{kind[:6].rstrip('s')}:{name}": s for kind in ("experts", "tuned") for name, s in family[kind].items()
        }
        self.sources = sources
        for role, source in sources.items():
            model: Any = AutoModelForCausalLM.from_pretrained(source["path"])
            self.models[role] = PeftModel.from_pretrained(model, source["adapter"]) if "adapter" in source else model
            self.models[role].eval()

    @cache  # noqa: B019  the reference lives as long as its run
    def logits(self, role: str, tokens: tuple[int, ...], size: int) -> np.ndarray:
        """[L, V] in float64: the model reads all tokens at once."""
        with torch.inference_mode():
            logits = self.models[role](input_ids=torch.tensor([tokens]), use_cache=False).logits
        return logits[0, :, :size].double().numpy()

    def roles(self, arm: Mapping[str, Any]) -> dict[str, list[str]]:
        """The roles of an arm by their part."""
        if "model" in arm:
            return {"base": [arm["model"]]}
        experts = [f"expert:{name}" for name in arm.get("experts", [])]
        anti = arm.get("antiexpert")
        return {"base": ["base"], "experts": experts, "antiexpert": [f"expert:{anti}" if anti else "antiexpert"]}

    def inputs(
        self, arm: Mapping[str, Any], prompt: Prompt, answer: tuple[int, ...], size: int
    ) -> dict[str, list[np.ndarray]]:
        """Logits [n + 1, V] of each model of the arm after the prompt and each token of the answer."""
        found = {}
        for part, roles in self.roles(arm).items():
            rows = [prompt.own.get(role, prompt.tokens) for role in roles]
            found[part] = [
                self.logits(role, row + answer, size)[len(row) - 1 :] for role, row in zip(roles, rows, strict=True)
            ]
        return found


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def kl(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (np.exp(a) * (a - b)).sum(-1)


def loss(base: np.ndarray, experts: list[np.ndarray], anti: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Fan et al. 2024, of weights [..., T]."""
    p, q = log_softmax(base), log_softmax(anti)
    fused = log_softmax(base + weights @ np.stack([expert - anti for expert in experts]))
    return sum((kl(fused, p) - kl(t, q)) ** 2 + (kl(p, fused) - kl(q, t)) ** 2 for t in map(log_softmax, experts))


def masked(base: np.ndarray, rule: Any, slack: float) -> np.ndarray:
    """Tokens [V] that a rule rules out, with its bounds moved by `slack` so that fewer are."""
    p = np.exp(log_softmax(base))
    out = p < rule.min_p * p.max() * (1 - slack)
    if getattr(rule, "top_p", 1) < 1:
        order = np.argsort(-p, kind="stable")
        before = np.cumsum(p[order]) - p[order]
        outside = before >= rule.top_p + slack
        outside[0] = False
        out[order[outside]] = True
    return out


def fused_rows(
    arm: Mapping[str, Any], inputs: dict[str, list[np.ndarray]], chosen: Any
) -> tuple[np.ndarray, np.ndarray]:
    """The arm's logits of each row [n, V], with as few tokens ruled out as rounding allows, and with as many.

    `chosen` [T][n] are the weights that the arm reports: those of MatchKL are checked and used, others are known.
    """
    base, rule = inputs["base"][0], arm.get("rule")
    if rule is None:
        return base, base
    anti, experts = inputs["antiexpert"][0], inputs["experts"]
    if isinstance(rule, Contrastive):
        fused = log_softmax(base) - log_softmax(anti)
    elif isinstance(rule, MatchKL):
        weights = np.array(chosen).T
        for row, weight in enumerate(weights):
            check_weights(rule, base[row], [expert[row] for expert in experts], anti[row], weight)
        fused = base[: len(weights)] + sum(
            w[:, None] * (expert[: len(weights)] - anti[: len(weights)])
            for w, expert in zip(weights.T, experts, strict=True)
        )
    else:
        each = rule.weights if isinstance(rule.weights, tuple) else [rule.weights] * len(experts)
        fused = base + sum(w * (expert - anti) for w, expert in zip(each, experts, strict=True))
        assert np.allclose(chosen, np.array(each)[:, None], atol=1e-6)
    if not hasattr(rule, "min_p"):
        return fused, fused
    few, many = (np.stack([masked(row, rule, slack) for row in base]) for slack in (1e-4, -1e-4))
    return np.where(few[: len(fused)], -np.inf, fused), np.where(many[: len(fused)], -np.inf, fused)


def check_weights(
    rule: MatchKL, base: np.ndarray, experts: list[np.ndarray], anti: np.ndarray, weight: np.ndarray
) -> None:
    """The weights are among those allowed, and none of the published search is better."""
    points = np.linspace(rule.low, rule.high, round((rule.high - rule.low) / rule.step) + 1)
    tried = np.concatenate([np.outer(points, one) for one in np.eye(len(experts))])
    best, mine = loss(base, experts, anti, tried).min(), float(loss(base, experts, anti, weight))
    assert mine <= best * 1.005 + 1e-3, (mine, best)
    assert (weight != 0).sum() <= 1 and rule.low <= weight.min() and weight.max() <= rule.high
    if rule.solver == "grid":
        assert np.abs(weight[:, None] - points).min(axis=1).max() < 1e-5


# --- the comparison ---------------------------------------------------------------------------------------------------


def expected_prompts(reference: Reference, question: str, keep: int) -> Prompt:
    """The last `keep` tokens of what each member of the arms reads."""
    tokenizer = tokenizer_of_run(reference)
    text = f"Question: {question}\nAnswer:"
    own = {}
    for role, system in reference.drawn.chat.items():
        before = "" if system is None else f"<|system|> {system}\n"
        asked = text.removesuffix("Answer:").strip()
        own[role] = tuple(tokenizer(f"{before}<|user|> {asked}\n<|assistant|> Answer:")["input_ids"][-keep:])
    return Prompt(tuple(tokenizer(text)["input_ids"][-keep:]), own)


def tokenizer_of_run(reference: Reference) -> Any:
    size = reference.models["base"].config.vocab_size
    return next(t for t in map(tokenizer_of, ("bytes", "llama")) if 0 <= size - len(t) <= 12)


def check_generated(reference: Reference, arm: dict, request: GenerateRequest, answer: Generated) -> None:
    """Every token is the arm's, and the answer ends where and as it should."""
    tokenizer, drawn = tokenizer_of_run(reference), reference.drawn
    size, tokens = len(tokenizer), answer.tokens
    inputs = reference.inputs(arm, request.prompt, tokens, size)
    few, many = fused_rows(arm, {part: [x[:-1] for x in rows] for part, rows in inputs.items()}, answer.weights)
    for step, token in enumerate(tokens):
        lenient, strict = few[step], many[step]
        if request.temperature > 0:
            noise = np.random.default_rng((request.seed, step)).gumbel(size=size)
            lenient, strict = (row / request.temperature + noise for row in (lenient, strict))
        assert lenient[token] >= strict.max() - NEAR / (request.temperature or 1), (step, token, int(strict.argmax()))
    roles = {role for some in reference.roles(arm).values() for role in some}
    if isinstance(arm.get("rule"), Contrastive):
        roles = {"base", "antiexpert"}
    ends = {2}.union(*(drawn.ends[role] for role in roles))
    before = request.prompt.own.get(reference.roles(arm)["base"][0], request.prompt.tokens)

    def text(n: int, skip: bool) -> str:
        alone, whole = (tokenizer.decode(list(ids), skip_special_tokens=skip) for ids in (before, before + tokens[:n]))
        return next(whole[at:] for at in range(len(whole), -1, -1) if alone.startswith(whole[:at]))

    def stopped(n: int) -> bool:
        return any(stop in text(n, skip=False) for stop in [*drawn.until, "</s>"])

    for n in range(1, len(tokens)):
        assert tokens[n - 1] not in ends and not stopped(n), "it would have ended before"
    finish = "eos" if tokens[-1] in ends else "stop" if stopped(len(tokens)) else "length"
    assert answer.finish == finish and (finish != "length" or len(tokens) == drawn.length)
    said = text(len(tokens) - (finish == "eos"), skip=True)
    assert answer.text == said[: min((said.find(s) for s in drawn.until if s in said), default=None)]


def check_scored(reference: Reference, arm: dict, request: Any, answer: Any) -> None:
    """Every log-probability is the arm's, and so is whether the token is its likeliest."""
    size, tokens = len(tokenizer_of_run(reference)), request.continuation
    inputs = reference.inputs(arm, request.prompt, tokens, size)
    few, many = fused_rows(arm, {part: [x[:-1] for x in rows] for part, rows in inputs.items()}, answer.weights)
    for step, token in enumerate(tokens):
        expected = [log_softmax(row[step])[token] for row in (few, many)]
        if not np.array_equal(np.isinf(few[step]), np.isinf(many[step])):
            continue  # rounding decides what is ruled out
        assert answer.logprobs[step] == pytest.approx(expected[0], abs=NEAR, rel=1e-4), step
        margin = few[step][token] - np.delete(few[step], token).max()
        assert abs(margin) < NEAR or answer.greedy[step] == (margin > 0)


class Recording(HFEngine):
    """Keeps every answer."""

    kept: list[tuple[Any, str, Any]]

    def score(self, requests, arms, progress=None):
        for index, name, answer in super().score(requests, arms, progress):
            self.kept.append((requests[index], name, answer))
            yield index, name, answer

    def generate(self, requests, arms, progress=None):
        for index, name, answer in super().generate(requests, arms, progress):
            self.kept.append((requests[index], name, answer))
            yield index, name, answer


@pytest.mark.parametrize("number", range(START, START + RUNS))
def test_a_run_is_what_the_reference_makes_of_it(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = draw(number, tmp_path)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "task.yaml").write_text(drawn.yaml)
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in drawn.items))
    manager = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
    monkeypatch.setattr(registry, "task_manager", lambda: manager)
    monkeypatch.setattr(registry, "_all_of_lm_eval", lambda: manager)
    kept: list[tuple[Any, str, Any]] = []

    def engine(ensemble: Any) -> Recording:
        made = Recording(ensemble, drawn.batch_size)
        made.kept = kept
        return made

    out, options = tmp_path / "out", {"data_dir": tmp_path, "seed": drawn.seed, "progress": False}
    asked = drawn.family, [drawn.task], drawn.arms
    record = run(*asked, engine, output_dir=out, store_path=tmp_path / "store.sqlite", **options)
    assert kept and all("is ruled out" in why for arms in record.failed.values() for why in arms.values())
    rows = [json.loads(line) for line in (out / "items" / f"{drawn.task}.jsonl").open()]
    check(Reference(drawn), kept, record, rows)

    again = run(*asked, engine, output_dir=tmp_path / "again", store_path=tmp_path / "store.sqlite", **options)
    done = again.provenance.timings.answers[drawn.task]
    assert again.tasks == record.tasks and done.computed == 0 and done.from_store == len(kept)


def check(reference: Reference, kept: list[tuple[Any, str, Any]], record: Any, rows: list[dict[str, Any]]) -> None:
    """What the engine answered, and what became of it."""
    drawn = reference.drawn
    for request, name, answer in kept:
        compare = check_generated if isinstance(answer, Generated) else check_scored
        compare(reference, drawn.arms[name], request, answer)
    used = {role for arm in drawn.arms.values() for roles in reference.roles(arm).values() for role in roles}
    windows = [reference.models[role].config.max_position_embeddings for role in used]
    room = min(windows) - drawn.length if isinstance(kept[0][2], Generated) else min(windows)
    asked = {(request.prompt.tokens, *sorted(request.prompt.own.items())) for request, _, _ in kept}
    assert [row["doc_id"] for row in rows] == list(range(len(drawn.items)))
    for item, row in zip(drawn.items, rows, strict=True):
        prompt = expected_prompts(reference, item["question"], room)
        own = sorted((role, tokens) for role, tokens in prompt.own.items() if role in used)
        if row["truncated_tokens"] == 0 or isinstance(kept[0][2], Generated):
            assert (prompt.tokens, *own) in asked
        for name, said in row["arms"].items():
            check_item(item, said, record.tasks[drawn.task].arms[name])
    done = record.tasks[drawn.task]
    for name, arm in done.arms.items():
        values = [row["arms"][name][done.metric] for row in rows]
        valid = [value for value in values if value is not None]
        assert arm.n == len(valid) and arm.value == (pytest.approx(np.mean(valid)) if valid else None)


def check_item(item: dict[str, Any], said: dict[str, Any], arm: Any) -> None:
    """The metric's value from the output."""
    if "error" in said:
        assert said["output"] is None
    elif "exact_match" in said:
        assert said["exact_match"] == float(said["output"] == item["answer"])
    elif len(said["output"]) > 1:
        scores = [-np.inf if score is None else score for score in said["output"]]
        assert said["acc"] == float(int(np.argmax(scores)) == item["gold"])
        assert not np.isneginf(scores).all()
