"""What the engine saves, as ratios within one run on a family made here (random weights, 32,000 tokens).

    python scripts/benchmark.py [--repeats 3] [--requests 8] [--json FILE]

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
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from unittest import mock

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from proxytune.engines.hf import HFEngine
from proxytune.engines.hf import decode as generate
from proxytune.engines.requests import GenerateRequest, Prompt, ScoreRequest
from proxytune.fusion import MatchKL, Static
from proxytune.fusion.arm import Arm
from proxytune.models.ensemble import Ensemble
from proxytune.models.member import Member

VOCAB = 32_000
EXPERT = "expert:task"
PROXY = Arm("proxy", rule=Static(1.0), experts=(EXPERT,))
SIX = [
    Arm("base"),
    Arm("expert", base=EXPERT),
    Arm("tuned", base="tuned:task"),
    PROXY,
    Arm("static 0.5", rule=Static(0.5), experts=(EXPERT,)),
    Arm("dynamic", rule=MatchKL(), experts=(EXPERT,)),
]


def llama(seed: int, hidden: int, layers: int) -> LlamaForCausalLM:
    """A random Llama whose logits are several units apart, so that rounding decides no token."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        tie_word_embeddings=True,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=2.0 * weight.shape[-1] ** -0.5)
    return model


def near(model: LlamaForCausalLM, seed: int, noise: float) -> LlamaForCausalLM:
    """The model with every matrix changed by `noise` times its spread."""
    torch.manual_seed(seed)
    changed = LlamaForCausalLM(model.config).eval().requires_grad_(False)
    changed.load_state_dict(model.state_dict())
    for weight in changed.parameters():
        if weight.dim() > 1:
            weight.add_(torch.randn_like(weight), alpha=noise * float(weight.std()))
    return changed


def family(noise: float | None, hidden: int = 384, layers: int = 6) -> Ensemble:
    """Base and tuned of 24 M parameters, antiexpert and expert of 5 M; `noise`: see `near`; None: all unlike."""
    base, anti = llama(1, hidden, layers), llama(2, 128, 2)
    models = {
        "base": base,
        "antiexpert": anti,
        EXPERT: llama(3, 128, 2) if noise is None else near(anti, 3, noise),
        "tuned:task": llama(4, hidden, layers) if noise is None else near(base, 4, noise),
    }
    return Ensemble({role: Member(role, model, VOCAB) for role, model in models.items()}, tokenizer())


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=words)


def prompts(count: int, length: int) -> list[Prompt]:
    """Prompts of half to the whole of `length` tokens."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(length // 2, length + 1, (count,), generator=generator).tolist()
    return [Prompt(tuple(torch.randint(VOCAB, (n,), generator=generator).tolist())) for n in lengths]


def timed(repeats: int, **calls: Callable[[], object]) -> dict[str, list[float]]:
    """Seconds of each call, `repeats` times, the calls taking turns; a first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], over: str, under: str) -> dict[str, object]:
    """Median and range over the repeats of the quotient of two calls of one round."""
    quotients = [a / b for a, b in zip(seconds[over], seconds[under], strict=True)]
    return {
        "ratio": round(statistics.median(quotients), 3),
        "range": [round(min(quotients), 3), round(max(quotients), 3)],
        "seconds": {name: round(statistics.median(values), 3) for name, values in seconds.items()},
    }


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
        loop=lambda: plain_loop(ensemble, [request.prompt.tokens for request in requests], new_tokens),
    )
    ours = {index: answer.tokens for index, _, answer in engine.generate(requests, [PROXY])}
    theirs = plain_loop(ensemble, [request.prompt.tokens for request in requests], new_tokens).tolist()
    equal = sum(ours[index] == tuple(tokens) for index, tokens in enumerate(theirs))
    return ratio(seconds, "engine", "loop") | {"equal answers": f"{equal} of {count}"}


@torch.inference_mode()
def plain_loop(ensemble: Ensemble, rows: Sequence[Sequence[int]], new_tokens: int) -> torch.Tensor:
    """Proxy-tuning as one writes it down: three models, three caches, one left-padded batch."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    models = [ensemble[role].model for role in ("base", EXPERT, "antiexpert")]
    caches = [DynamicCache(config=model.config) for model in models]
    answer = []
    for _ in range(new_tokens):
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        base, expert, anti = (
            model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1).logits[
                :, -1
            ]
            for model, cache in zip(models, caches, strict=True)
        )
        ids = (base + (expert - anti)).argmax(-1, keepdim=True)
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        answer.append(ids)
    return torch.cat(answer, dim=1)


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
        with mock.patch.object(generate, "ENTRY", 2.0):
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
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    start = time.perf_counter()
    unlike, alike = family(None), family(0.005)
    parts: dict[str, Callable[[], Mapping[str, object]]] = {
        "start": lambda: start(options.repeats),
        "sweep": lambda: sweep(family(None, hidden=512, layers=8), options.requests, options.repeats),
        "arms, near family": lambda: arms(alike, options.requests, options.repeats),
        "arms, random family": lambda: arms(unlike, options.requests, options.repeats),
        "loop": lambda: loop(unlike, options.requests, options.repeats),
        "refill": lambda: refill(unlike, options.repeats),
    }
    figures: dict[str, object] = {}
    for name, part in parts.items():
        figures[name] = part()
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
