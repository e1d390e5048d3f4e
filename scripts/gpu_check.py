"""All measurements on a GPU in one call of at most 8 minutes: a table, and the same as JSON.

    python scripts/gpu_check.py [--json FILE] [--only SECTION ...] [--seconds 460] [--toy]

    bandwidth   bytes that a copy reads and writes per second: what all floors are computed from
    large_1b    13B + 2 x 1.1B in bfloat16, random weights: milliseconds per token of the plain base and of the fused
                model; eager, as CUDA graphs, and speculated at forced acceptance
    compiled_1b the same by torch.compile, recorded as CUDA graphs; takes minutes and runs only where it is named
    large_7b    13B + 2 x 7B
    match_kl    MatchKL's kernel against its search in PyTorch: time, reads of the rows, difference of the losses
    engine      whole answers of 13B + 2 x 1.1B by the engine of `proxytune run`
    answers     tokens of the static caches and graphs, and of bfloat16, against those of float32
    training    a training step in bfloat16, plain and sharded by FSDP

Needs torch, transformers and proxytune's models (peft, pydantic, PyYAML); neither lm-eval nor Hydra. A section that
fails is reported as failed, and the others go on. Every timing is a median of rounds in which the variants take turns,
with the smallest and the largest. "floor" is the time in which the weights that a token needs are read at the measured
bandwidth. `--toy` does the same with tiny models on a CPU.
"""

from __future__ import annotations

import argparse
import json
import math
import socket
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from proxytune.engines.hf import HFEngine
from proxytune.engines.requests import GenerateRequest, Prompt
from proxytune.fusion import MatchKL, Static
from proxytune.fusion.arm import Arm
from proxytune.models.ensemble import Ensemble
from proxytune.models.member import Member
from proxytune.models.static_state import StaticState

Row = dict[str, Any]
"""One line of the table."""
ACCEPTANCES = (0.6, 0.7, 0.8, 0.9)
TOY_VOCAB, VOCAB = 500, 32_000


@dataclass(frozen=True)
class Setting:
    """Where the checks run, and how large."""

    device: torch.device
    toy: bool
    deadline: float

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.toy else torch.bfloat16

    @property
    def vocab(self) -> int:
        return TOY_VOCAB if self.toy else VOCAB

    @property
    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


# --- models -----------------------------------------------------------------------------------------------------------

SHAPES = {"13B": (5120, 13824, 40, 40, 40), "7B": (4096, 11008, 32, 32, 32), "1.1B": (2048, 5632, 22, 32, 4)}
"""Hidden size, size of the MLP, layers, heads, heads of keys and values: of Llama 2 and TinyLlama."""


def make(size: str, setting: Setting, seed: int, dtype: torch.dtype | None = None) -> LlamaForCausalLM:
    """A random Llama of that size, made on the device; logits differ enough that rounding decides few tokens."""
    hidden, mlp, layers, heads, kv_heads = (64, 128, 3 if size == "13B" else 2, 4, 2) if setting.toy else SHAPES[size]
    config = LlamaConfig(
        vocab_size=setting.vocab,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=4096,
        eos_token_id=None,
    )
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(setting.dtype if dtype is None else dtype)
    try:
        with torch.device(setting.device):
            model = LlamaForCausalLM(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    torch.nn.init.normal_(model.lm_head.weight, std=0.1)
    return model


def family(sizes: Mapping[str, str], setting: Setting) -> dict[str, Member]:
    """Members by role."""
    return {
        role: Member(role, make(size, setting, seed), setting.vocab) for seed, (role, size) in enumerate(sizes.items())
    }


def read_bytes(member: Member) -> int:
    """The bytes of the weights that a token needs: all but the embedding table."""
    table = member.model.get_input_embeddings().weight
    return sum(p.numel() * p.element_size() for p in member.model.parameters()) - table.numel() * table.element_size()


def prompts(setting: Setting, rows: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(rows)
    return torch.randint(3, setting.vocab, (rows, 16 if setting.toy else 128), generator=generator).tolist()


# --- timing -----------------------------------------------------------------------------------------------------------


def alternate(setting: Setting, rounds: int, calls: Mapping[str, Callable[[], int]]) -> dict[str, list[float]]:
    """Milliseconds per token of each call, which returns its number of tokens; the calls take turns. A first round
    warms up."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            setting.wait()
            start = time.perf_counter()
            tokens = call()
            setting.wait()
            if turn:
                found[name].append(1000 * (time.perf_counter() - start) / tokens)
    return found


def spread(times: Sequence[float]) -> Row:
    return {"median_ms": statistics.median(times), "min_ms": min(times), "max_ms": max(times)}


def bandwidth(setting: Setting) -> float:
    """Bytes per second that a copy on the device reads and writes together."""
    size = 2**24 if setting.toy else 2**32
    source = torch.empty(size, dtype=torch.uint8, device=setting.device).random_()
    target = torch.empty_like(source)

    def copy() -> int:
        target.copy_(source)
        return 1

    times = alternate(setting, 10, {"copy": copy})["copy"]
    return 2 * size / (statistics.median(times) / 1000)


# --- decoding ---------------------------------------------------------------------------------------------------------


class Decoder:
    """Members in static states that read the same prompts; tokens stay on the device within a cycle."""

    def __init__(
        self, members: Mapping[str, Member], rows: int, setting: Setting, compile: bool = False, apart: bool = True
    ) -> None:
        """`apart`: each member on a CUDA stream of its own."""
        self.setting, self.members, self.rows = setting, members, rows
        self.prompts = prompts(setting, rows)
        columns, graphs = 64 if setting.toy else 512, setting.device.type == "cuda"
        self.states = {role: StaticState(member, columns, graphs, compile) for role, member in members.items()}
        for role, member in members.items():
            state = member.start(rows)
            member.read(state, torch.tensor(self.prompts)[:, :-1])
            self.states[role].join(state)
        self.streams = {role: torch.cuda.Stream() for role in members} if graphs and apart else {}
        self.start = torch.tensor(self.prompts, device=setting.device)[:, -1:]
        self.length = len(self.prompts[0]) - 1

    def lengths(self, done: int) -> Tensor:
        return torch.full((self.rows,), self.length + done, device=self.setting.device)

    def step(self, roles: Sequence[str], tokens: Tensor, done: int) -> dict[str, Tensor]:
        """Logits [B, t, V] of `roles`, which read `tokens` [B, t] after `done` others, each on its own stream."""
        return self._together({role: (tokens, self.lengths(done)) for role in roles})

    def verify(self, tokens: Tensor, done: int, drafts: int) -> dict[str, Tensor]:
        """Base and antiexpert read all `tokens`, the expert the last of them."""
        reading = {role: (tokens, self.lengths(done)) for role in ("base", "anti")}
        return self._together(reading | {"expert": (tokens[:, -1:], self.lengths(done + drafts))})

    def _together(self, reading: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        if not self.streams:
            return {role: self.states[role].step(*inputs).float() for role, inputs in reading.items()}
        here, found = torch.cuda.current_stream(), {}
        for role, inputs in reading.items():
            self.streams[role].wait_stream(here)
            with torch.cuda.stream(self.streams[role]):
                found[role] = self.states[role].step(*inputs).float()
        for role in reading:
            here.wait_stream(self.streams[role])
        return found


def choose(rule: Any, logits: Mapping[str, Tensor]) -> Tensor:
    """The likeliest tokens [B, t] of the only member, or of the rule over the three."""
    if rule is None:
        return next(iter(logits.values())).argmax(-1)
    return rule.fuse(logits["base"], logits["expert"][None], logits["anti"]).logits.argmax(-1)


def plain(decoder: Decoder, roles: Sequence[str], rule: Any, steps: int) -> int:
    """One token after the other; each is looked at on the host, as an engine does."""
    tokens = decoder.start
    for done in range(steps):
        tokens = choose(rule, decoder.step(roles, tokens, done))
        tokens.tolist()
    return steps


def eager(members: Mapping[str, Member], given: Sequence[Sequence[int]], rule: Any, steps: int) -> Callable[[], int]:
    """The same by transformers' dynamic caches."""
    states = {role: member.start(len(given)) for role, member in members.items()}
    for role, member in members.items():
        member.read(states[role], torch.tensor(given)[:, :-1])

    def run() -> int:
        tokens = torch.tensor(given)[:, -1:].to(next(iter(members.values())).device)
        for _ in range(steps):
            tokens = choose(rule, {role: members[role].read(states[role], tokens).float() for role in members})
            tokens.tolist()
        for state in states.values():
            state.crop(steps)
        return steps

    return run


def speculated(decoder: Decoder, rule: Any, drafts: int, acceptance: float, tokens: int) -> int:
    """The expert drafts, base and antiexpert verify while the expert reads its last draft: the number of tokens.

    How many drafts are right is set, so that random weights do not decide it: evenly spread over its distribution.
    """
    done, cycles = 0, 0
    while done < tokens:
        read, drafted = [decoder.start], []
        for i in range(drafts):
            drafted.append(decoder.step(["expert"], read[-1], done + i)["expert"])
            read.append(drafted[-1].argmax(-1))
        verified = decoder.verify(torch.cat(read, dim=1), done, drafts)
        chosen = choose(rule, {**verified, "expert": torch.cat([*drafted, verified["expert"]], dim=1)})
        chosen.tolist()
        done += accepted(cycles, drafts, acceptance) + 1
        cycles += 1
    return done


def accepted(cycle: int, drafts: int, acceptance: float) -> int:
    """Of `drafts`, where each is right with the given probability if those before it are."""
    share = (0.5 + cycle * 0.618034) % 1.0
    return min(drafts, int(math.log(1 - share) / math.log(acceptance)))


def drafts_for(acceptance: float, ratio: float, most: int = 10) -> int:
    """The number of drafts that makes a token cheapest where an expert's step costs `ratio` of the base's."""

    def cost(k: int) -> float:
        return (1 + ratio / 2 + k * ratio) / sum(acceptance**i for i in range(k + 1))

    return min(range(1, most + 1), key=cost)


def decode(setting: Setting, sizes: Mapping[str, str], measured: float) -> Iterator[Row]:
    """The plain base and the fused model at batch 1 and 8, in every way to run them."""
    members = family(sizes, setting)
    roles, steps = tuple(members), 8 if setting.toy else 32
    floor = {role: 1000 * read_bytes(member) / measured for role, member in members.items()}
    yield {"what": "floor: base", "median_ms": floor["base"]}
    yield {"what": "floor: fused", "median_ms": sum(floor.values())}
    yield from at_batch(setting, members, roles, 1, steps)
    yield from at_batch(setting, members, roles, 8, steps)


def at_batch(
    setting: Setting, members: Mapping[str, Member], roles: Sequence[str], rows: int, steps: int
) -> Iterator[Row]:
    given, one = prompts(setting, rows), {"base": members["base"]}
    decoder, serial = Decoder(members, rows, setting), Decoder(members, rows, setting, apart=False)
    static, dynamic = Static(1.0), MatchKL()
    calls = {
        "graphs: base": lambda: plain(decoder, ["base"], None, steps),
        "graphs: antiexpert": lambda: plain(decoder, ["anti"], None, steps),
        "graphs: fused": lambda: plain(decoder, roles, static, steps),
        "graphs: fused, MatchKL": lambda: plain(decoder, roles, dynamic, steps),
        "graphs, one stream: fused": lambda: plain(serial, roles, static, steps),
        "eager: base": eager(one, given, None, steps // 2),
        "eager: fused": eager(members, given, static, steps // 2),
    }
    found = alternate(setting, 2 if setting.toy else 4, calls)
    yield from lines(found, found["graphs: base"], batch=rows)
    if rows == 1:
        yield from speculation(setting, decoder, "graphs", found["graphs: base"], found["graphs: antiexpert"], steps)


def compiled(setting: Setting, sizes: Mapping[str, str]) -> Iterator[Row]:
    """By torch.compile, one layer for all, recorded as graphs: batch 1."""
    members, steps = family(sizes, setting), 8 if setting.toy else 32
    roles, decoder = tuple(members), Decoder(members, 1, setting, compile=True)
    for role in roles:
        start = time.perf_counter()
        plain(decoder, [role], None, 1)
        yield {"what": f"compiling and recording: {role}", "batch": 1, "seconds": time.perf_counter() - start}
    calls = {
        "compiled: base": lambda: plain(decoder, ["base"], None, steps),
        "compiled: antiexpert": lambda: plain(decoder, ["anti"], None, steps),
        "compiled: fused": lambda: plain(decoder, roles, Static(1.0), steps),
        "compiled: fused, MatchKL": lambda: plain(decoder, roles, MatchKL(), steps),
    }
    found = alternate(setting, 2 if setting.toy else 4, calls)
    yield from lines(found, found["compiled: base"], batch=1)
    yield from speculation(setting, decoder, "compiled", found["compiled: base"], found["compiled: antiexpert"], steps)


def speculation(
    setting: Setting, decoder: Decoder, name: str, base: Sequence[float], small: Sequence[float], steps: int
) -> Iterator[Row]:
    """With as many drafts as the measured times of base and small model make best. torch.compile compiles anew for each
    number of drafts, so that there it is one for all."""
    ratio = statistics.median(small) / statistics.median(base)
    calls, drafts = {}, {}
    for acceptance in ACCEPTANCES:
        for rule in (Static(1.0), MatchKL()):
            what = f"{name}: speculated at {acceptance}" + (", MatchKL" if rule.id == "match_kl" else "")
            if rule.id == "static" or acceptance == 0.8:
                drafts[what] = drafts_for(0.8 if name == "compiled" else acceptance, ratio)
                calls[what] = partial(speculated, decoder, rule, drafts[what], acceptance, 2 * steps)
    found = alternate(setting, 2 if setting.toy else 4, calls)
    for row in lines(found, base, batch=1):
        yield row | {"drafts": drafts[row["what"]]}


def lines(found: Mapping[str, Sequence[float]], base: Sequence[float], **more: Any) -> Iterator[Row]:
    """Times, and their ratio to those of the plain base."""
    for name, times in found.items():
        yield {"what": name, **more, **spread(times), "of_base": statistics.median(times) / statistics.median(base)}


def engine(setting: Setting, measured: float) -> Iterator[Row]:
    """Whole answers of 13B + 2 x 1.1B by the engine of `proxytune run`: base and proxy arm, each alone, batch 1."""
    members = family({"base": "13B", "expert:task": "1.1B", "antiexpert": "1.1B"}, setting)
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(setting.vocab)}, unk_token="w0"))
    ensemble = Ensemble(members, PreTrainedTokenizerFast(tokenizer_object=words))
    requests = [GenerateRequest(Prompt(tuple(prompts(setting, 1)[0])), max_new_tokens=8 if setting.toy else 64)]
    arms = {"base": Arm("base"), "proxy": Arm("proxy", rule=Static(1.0), experts=("expert:task",))}
    engines = {
        "plain": HFEngine(ensemble, 1, speculate="off", compile=False),
        "graphs": HFEngine(ensemble, 1, speculate="off", compile="auto"),
    }
    calls = {
        f"{how}: {name}": partial(answered, one, requests, arm)
        for how, one in engines.items()
        for name, arm in arms.items()
    }
    found = alternate(setting, 2 if setting.toy else 4, calls)
    yield from lines(found, found["graphs: base"], batch=1)


def answered(engine: HFEngine, requests: Sequence[GenerateRequest], arm: Arm) -> int:
    return sum(len(answer.tokens) for _, _, answer in engine.generate(requests, [arm]))


# --- the kernel of MatchKL --------------------------------------------------------------------------------------------


def language_like(rows: int, vocabulary: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [n, V] with Zipf's law and a few likely tokens: base, expert [1, n, V], antiexpert."""
    generator = torch.Generator(device).manual_seed(0)

    def noise() -> Tensor:
        return torch.randn(rows, vocabulary, generator=generator, device=device)

    def likely(scale: float) -> Tensor:
        tokens = torch.randint(vocabulary, (rows, 20), generator=generator, device=device)
        height = scale * torch.rand(rows, 20, generator=generator, device=device)
        return torch.zeros(rows, vocabulary, device=device).scatter_(1, tokens, height)

    common = -1.1 * torch.arange(1, vocabulary + 1, device=device).log() + 1.5 * noise() + likely(14.0)
    antiexpert = 0.8 * common + noise()
    strength = 1.5 * torch.rand(rows, 1, generator=generator, device=device)
    expert = antiexpert + strength * noise() + likely(8.0)
    return 1.2 * common + 0.8 * noise(), expert[None], antiexpert


def match_kl(setting: Setting, measured: float) -> Iterator[Row]:
    """A read of the rows is base, one expert and antiexpert once, in float32, at the measured bandwidth."""
    for rows, vocabulary in ((4, 810), (8, 2000)) if setting.toy else ((5, 32_000), (64, 32_000), (256, 151_936)):
        base, expert, anti = language_like(rows, vocabulary, setting.device)
        one, two = (base, expert, anti), (base, torch.cat([expert, expert.flip(1)]), anti)
        calls = {
            "kernel": partial(weights, MatchKL(), one),
            "PyTorch": partial(weights_without_kernel, MatchKL(), one),
            "PyTorch, grid": partial(weights, MatchKL(solver="grid"), one),
            "PyTorch, two experts, joint": partial(weights, MatchKL(experts="joint"), two),
        }
        above = (MatchKL().loss(*one, calls["kernel"]()) - MatchKL().loss(*one, calls["PyTorch"]())).max().item()
        yield {"what": f"[{rows}, {vocabulary}] loss of the kernel over PyTorch's, at most", "above": above}
        read_ms = 1000 * 3 * 4 * rows * vocabulary / measured
        once = {name: partial(counted_once, call) for name, call in calls.items()}
        for name, times in alternate(setting, 3 if setting.toy else 20, once).items():
            reads = statistics.median(times) / read_ms
            yield {"what": f"[{rows}, {vocabulary}] {name}", **spread(times), "reads": reads}


def weights(rule: MatchKL, logits: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return rule.fuse(*logits).weights


def weights_without_kernel(rule: MatchKL, logits: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    with mock.patch.object(MatchKL, "_kernel", lambda *_: None):
        return weights(rule, logits)


def counted_once(call: Callable[[], object]) -> int:
    call()
    return 1


# --- answers ----------------------------------------------------------------------------------------------------------


def answers(setting: Setting, measured: float) -> Iterator[Row]:
    """Greedy fused answers in float32 by dynamic caches are the reference."""
    sizes = {"base": "1.1B", "expert": "1.1B", "anti": "1.1B"}
    rows, steps = (2, 8) if setting.toy else (8, 64)
    exact = {
        role: Member(role, make(size, setting, seed, torch.float32), setting.vocab)
        for seed, (role, size) in enumerate(sizes.items())
    }
    reference, logits = by_dynamic(setting, exact, rows, steps)
    yield {"what": "float32, static and graphs", "equal": share(by_static(setting, exact, rows, steps), reference)}
    for member in exact.values():
        member.model.to(torch.bfloat16)
    forced, _ = by_dynamic(setting, exact, rows, steps, reference)
    apart = (forced != reference).nonzero().tolist()
    gaps = [(logits[r, c, reference[r, c]] - logits[r, c, forced[r, c]]).item() for r, c in apart]
    yield {
        "what": "bfloat16 after the same tokens",
        "equal": share(forced, reference),
        "first_gap": gaps[0] if gaps else None,
        "largest_gap": max(gaps, default=None),
    }
    free = by_static(setting, exact, rows, steps)
    yield {"what": "bfloat16, whole answers", "equal": (free == reference).all(1).float().mean().item()}


def share(tokens: Tensor, reference: Tensor) -> float:
    return (tokens == reference).float().mean().item()


def by_dynamic(
    setting: Setting, members: Mapping[str, Member], rows: int, steps: int, forced: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Tokens [B, steps] and fused logits [B, steps, V]; `forced` are read in place of the chosen tokens."""
    given = torch.tensor(prompts(setting, rows))
    states = {role: member.start(rows) for role, member in members.items()}
    tokens, chosen, seen = given, [], []
    for i in range(steps):
        logits = {role: member.read(states[role], tokens)[:, -1].float() for role, member in members.items()}
        fused = Static(1.0).fuse(logits["base"], logits["expert"][None], logits["anti"]).logits
        chosen.append(fused.argmax(-1))
        seen.append(fused)
        tokens = (chosen[-1] if forced is None else forced[:, i])[:, None]
    return torch.stack(chosen, 1), torch.stack(seen, 1)


def by_static(setting: Setting, members: Mapping[str, Member], rows: int, steps: int) -> Tensor:
    decoder, found = Decoder(members, rows, setting), []
    tokens = decoder.start
    for done in range(steps):
        tokens = choose(Static(1.0), decoder.step(tuple(members), tokens, done))
        found.append(tokens)
    return torch.cat(found, dim=1)


# --- training ---------------------------------------------------------------------------------------------------------


def training(setting: Setting, measured: float) -> Iterator[Row]:
    """Steps of AdamW on one batch, whose loss must fall."""
    with torch.inference_mode(False), torch.enable_grad():
        yield {"what": "bfloat16", **train(setting, make("1.1B", setting, 0))}
        with one_process(setting):
            yield {"what": "bfloat16, FSDP", **train(setting, sharded(make("1.1B", setting, 0)))}


def train(setting: Setting, model: torch.nn.Module) -> Row:
    rows, length = (2, 16) if setting.toy else (4, 1024)
    tokens = torch.randint(3, setting.vocab, (rows, length), device=setting.device)
    model.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3 if setting.toy else 1e-4)
    losses, times = [], []
    for _ in range(3 if setting.toy else 8):
        setting.wait()
        start = time.perf_counter()
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        setting.wait()
        times.append(1000 * (time.perf_counter() - start))
    if not losses[-1] < losses[0]:
        raise RuntimeError(f"the loss does not fall: {losses}")
    return {**spread(times[1:]), "first_loss": losses[0], "last_loss": losses[-1]}


def sharded(model: LlamaForCausalLM) -> torch.nn.Module:
    from torch.distributed.fsdp import fully_shard

    for layer in model.model.layers:
        fully_shard(layer)
    return fully_shard(model)


@contextmanager
def one_process(setting: Setting) -> Iterator[None]:
    """A process group of this process alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    backend = "nccl" if setting.device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


# --- the call ---------------------------------------------------------------------------------------------------------

SECTIONS: dict[str, Callable[[Setting, float], Iterator[Row]]] = {
    "large_1b": lambda s, b: decode(s, {"base": "13B", "expert": "1.1B", "anti": "1.1B"}, b),
    "engine": engine,
    "match_kl": match_kl,
    "answers": answers,
    "training": training,
    "large_7b": lambda s, b: decode(s, {"base": "13B", "expert": "7B", "anti": "7B"}, b),
    "compiled_1b": lambda s, b: compiled(s, {"base": "13B", "expert": "1.1B", "anti": "1.1B"}),
}
USUAL = [name for name in SECTIONS if name != "compiled_1b"]
NEEDED = 30
"""Seconds without which no section begins."""


def section(name: str, setting: Setting, measured: float) -> Iterator[Row]:
    """Its rows; a section that fails or has no time left yields a row that reports this."""
    if setting.left < NEEDED:
        yield {"what": "left out: no time"}
        return
    start = time.perf_counter()
    try:
        with torch.inference_mode():
            yield from SECTIONS[name](setting, measured)
    except Exception as error:
        traceback.print_exc()
        yield {"what": f"FAILED: {type(error).__name__}: {' '.join(str(error).splitlines()[:1])}"}
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()
    yield {"what": "the section", "seconds": time.perf_counter() - start}


def show(section: str, row: Row) -> None:
    numbers = (f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in row.items())
    print(
        f"{section:10} {row['what']:46}", *(number for number in numbers if not number.startswith("what=")), flush=True
    )


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """The rows that were printed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=USUAL)
    parser.add_argument("--seconds", type=float, default=460.0)
    parser.add_argument("--toy", action="store_true")
    options = parser.parse_args(arguments)
    device = torch.device("cpu" if options.toy or not torch.cuda.is_available() else "cuda")
    if device.type == "cpu" and not options.toy:
        sys.exit("no GPU: only --toy runs on a CPU")
    setting = Setting(device, options.toy, time.monotonic() + options.seconds)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    measured = bandwidth(setting)
    rows: list[Row] = [
        {"section": "bandwidth", "what": f"{name}, torch {torch.__version__}", "tb_per_s": measured / 1e12}
    ]
    show("bandwidth", rows[0])
    for chosen in options.only:
        for row in section(chosen, setting, measured):
            rows.append({"section": chosen, **row})
            show(chosen, row)
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return rows


if __name__ == "__main__":
    main()
