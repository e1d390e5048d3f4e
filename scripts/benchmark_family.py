"""What the benchmarks share: random families, prompts, and calls that are timed in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from proxytune.engines.requests import Prompt
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


def llama(seed: int, hidden: int, layers: int, vocab: int = VOCAB) -> LlamaForCausalLM:
    """A random Llama whose logits are several units apart, so that rounding decides no token."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
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


def family(noise: float | None, hidden: int = 384, layers: int = 6, small: int = 128, vocab: int = VOCAB) -> Ensemble:
    """Base and tuned of 24 M parameters, antiexpert and expert of 5 M; `noise`: see `near`; None: all unlike."""
    few = min(layers, 2)
    base, anti = llama(1, hidden, layers, vocab), llama(2, small, few, vocab)
    models = {
        "base": base,
        "antiexpert": anti,
        EXPERT: llama(3, small, few, vocab) if noise is None else near(anti, 3, noise),
        "tuned:task": llama(4, hidden, layers, vocab) if noise is None else near(base, 4, noise),
    }
    return Ensemble({role: Member(role, model, vocab) for role, model in models.items()}, tokenizer(vocab))


def tokenizer(vocab: int = VOCAB) -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(vocab)}, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=words)


def prompts(count: int, length: int) -> list[Prompt]:
    """Prompts of half to the whole of `length` tokens."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(length // 2, length + 1, (count,), generator=generator).tolist()
    return [Prompt(tuple(torch.randint(VOCAB, (n,), generator=generator).tolist())) for n in lengths]


def timed(
    repeats: int, clock: Callable[[], float] = time.perf_counter, **calls: Callable[[], object]
) -> dict[str, list[float]]:
    """Seconds of each call, `repeats` times, the calls taking turns; a first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start = clock()
            call()
            if turn:
                seconds[name].append(clock() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], over: str, under: str) -> dict[str, object]:
    """Median and range over the repeats of the quotient of two calls of one round."""
    quotients = [a / b for a, b in zip(seconds[over], seconds[under], strict=True)]
    return {
        "ratio": round(statistics.median(quotients), 3),
        "range": [round(min(quotients), 3), round(max(quotients), 3)],
        "seconds": {name: round(statistics.median(values), 3) for name, values in seconds.items()},
    }
