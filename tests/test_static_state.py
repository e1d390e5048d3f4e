"""Rows in slots of a cache of fixed size: the same logits as without, whatever comes, goes, splits and is forgotten."""

from __future__ import annotations

import random
from functools import partial

import pytest
import torch
from test_architectures import RIGHT, WINDOW, V, alone, build
from tiny import save_family, tiny_adapter_family, tiny_family, tiny_mistral
from torch._dynamo.testing import CompileCounter

from proxytune.engines.hf import HFEngine
from proxytune.engines.requests import GenerateRequest, Prompt
from proxytune.errors import UserError
from proxytune.fusion import MatchKL, Static
from proxytune.fusion.arm import Arm
from proxytune.models import FamilySpec, load
from proxytune.models.compiled import by_layer
from proxytune.models.member import Member
from proxytune.models.rows import pad
from proxytune.models.static_state import StaticState, StaticStates, bucket, fits

CLOSE = {"atol": 2e-4, "rtol": 1e-5}


def prefilled(member: Member, rows: list[list[int]]):
    width = max(map(len, rows))
    tokens = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    state = member.start(len(rows))
    member.read(state, tokens, mask)
    return state


@torch.inference_mode()
def after(member: Member, row: list[int], keep: int) -> torch.Tensor:
    with member.active():
        return member.model(torch.tensor([row]), use_cache=False).logits[0, -keep:].float()


def some(rng: random.Random, size: int) -> list[int]:
    return [rng.randrange(3, V) for _ in range(size)]


MEMBERS = {
    "llama": lambda: tiny_family()["base"],
    "gpt2": lambda: tiny_family()["expert:trivia"],
    "adapter": lambda: tiny_adapter_family()["expert:math"],
}


@pytest.mark.parametrize("kind", MEMBERS)
@torch.inference_mode()
def test_rows_that_come_go_split_and_forget_are_each_row_alone(kind):
    """Random operations, each followed by a step of random width, against reading every row from its beginning."""
    member, rng = MEMBERS[kind](), random.Random(kind)
    state = StaticState(member, columns=160, graphs=False)
    rows: list[list[int]] = []
    for _ in range(25):
        if not rows or (len(rows) < 6 and rng.random() < 0.3):
            new = [some(rng, rng.randrange(1, 12)) for _ in range(rng.randrange(1, 4))]
            state.join(prefilled(member, new))
            rows += new
        kept = [rng.randrange(len(rows)) for _ in range(rng.randrange(1, min(9, len(rows) + 3)))]
        state.select(torch.tensor(kept))
        rows = [list(rows[row]) for row in kept]
        forgotten = [rng.randrange(0, min(3, len(row))) for row in rows]
        state.forget(forgotten)
        rows = [row[: len(row) - few] for row, few in zip(rows, forgotten, strict=True)]
        tokens = [some(rng, rng.choice([1, 1, 2, 5])) for _ in rows]
        logits = state.read(*pad(tokens, left=False))
        assert state.rows == len(rows) <= state.size
        for i, (row, new) in enumerate(zip(rows, tokens, strict=True)):
            row += new
            expected = member.aligned(after(member, row, len(new)))
            torch.testing.assert_close(logits[i, : len(new)].float(), expected, **CLOSE)


def test_dropping_rows_moves_nothing_and_few_rows_take_few_slots():
    member, rng = MEMBERS["llama"](), random.Random(0)
    state = StaticState(member, columns=32, graphs=False)
    with torch.inference_mode():
        state.join(prefilled(member, [some(rng, 3) for _ in range(7)]))
    assert (state.size, state.slots) == (8, [0, 1, 2, 3, 4, 5, 6])
    keys = state.layers[0].keys
    state.select(torch.tensor([6, 4, 0, 2, 1]))
    assert (state.slots, state.layers[0].keys is keys) == ([6, 4, 0, 2, 1], True)
    with torch.inference_mode():
        state.select(torch.tensor([2, 0]))
    assert sorted(state.slots) == [0, 1] and state.slots[0] == 0


def test_rows_that_are_too_long_are_refused():
    member, rng = MEMBERS["llama"](), random.Random(0)
    state = StaticState(member, columns=8, graphs=False)
    with torch.inference_mode():
        state.join(prefilled(member, [some(rng, 7)]))
        state.read(torch.tensor([[5]]))
        with pytest.raises(ValueError, match=r"8 \+ 1 tokens do not fit into 8 columns"):
            state.read(torch.tensor([[5]]))
        with pytest.raises(ValueError, match="rows of 9 tokens do not fit into 8 columns"):
            state.join(prefilled(member, [some(rng, 9)]))


@pytest.mark.parametrize(("rows", "slots"), [(0, 1), (1, 1), (2, 2), (3, 4), (8, 8), (9, 16)])
def test_slots_come_in_powers_of_two(rows, slots):
    assert bucket(rows) == slots


@pytest.mark.parametrize("name", RIGHT)
@torch.inference_mode()
def test_every_architecture_that_fits_gives_the_logits_of_a_row_alone(name):
    member, rng = Member("base", build(name), V), random.Random(1)
    rows = [some(rng, 20), some(rng, 6)]
    state = prefilled(member, [row[:-4] for row in rows])
    if not fits(member, state):
        pytest.skip("keeps its dynamic cache")
    static = StaticState(member, WINDOW, graphs=False)
    static.join(state)
    last = torch.tensor([row[-4:] for row in rows])
    logits = torch.cat([static.read(last[:, :1]), static.read(last[:, 1:])], dim=1)
    for row, found in zip(rows, logits, strict=True):
        torch.testing.assert_close(found[:, :V].float(), alone(member.model, row), **CLOSE)


def test_a_step_that_cannot_be_recorded_is_run_and_said_once(caplog):
    """Of a model that looks at its own results, say."""
    member, rng = MEMBERS["llama"](), random.Random(0)
    plain, broken = (StaticState(member, 16, graphs=False) for _ in range(2))

    def record(*_):
        raise RuntimeError("operation not permitted when stream is capturing")

    with torch.inference_mode():
        rows = [some(rng, 6), some(rng, 3)]
        plain.join(prefilled(member, rows))
        broken.join(prefilled(member, rows))
        tokens, lengths = torch.tensor([[7], [8]]), torch.tensor([6, 3])
        broken.graphs = record  # type: ignore[assignment]
        for _ in range(2):
            torch.testing.assert_close(broken.step(tokens, lengths), plain.step(tokens, lengths))
    assert [record.message for record in caplog.records] == [
        "base can't be recorded as a CUDA graph and runs without: operation not permitted when stream is capturing"
    ]


# --- in the engine ----------------------------------------------------------------------------------------------------

ARMS = [
    Arm("base"),
    Arm("proxy", rule=Static(1.0), experts=("expert:math",)),
    Arm("dynamic", rule=MatchKL(), experts=("expert:trivia",)),
    Arm("both", rule=Static((0.5, 0.5)), experts=("expert:math", "expert:trivia")),
]


@pytest.mark.parametrize("make", [tiny_family, tiny_adapter_family])
@pytest.mark.parametrize(("size", "speculate"), [(1, "off"), (6, "off"), (6, 3), (2, "auto")])
def test_the_engine_answers_the_same_with_static_caches(make, size, speculate, monkeypatch):
    """Arms that split, rows that enter and leave, drafts that are rejected; the states are used again."""
    ensemble, rng = make(), random.Random(3)
    requests = [
        GenerateRequest(Prompt(tuple(some(rng, rng.randrange(1, 30)))), 10, temperature=0.8 * (i % 2), seed=i)
        for i in range(14)
    ]

    def answers(engine: HFEngine, asked: list[GenerateRequest]) -> dict:
        return {(index, arm): answer for index, arm, answer in engine.generate(asked, ARMS)}

    plain = HFEngine(ensemble, size, speculate=speculate, compile=False)
    static = HFEngine(ensemble, size, speculate=speculate, compile=True)
    monkeypatch.setattr(torch, "compile", lambda model: model)
    expected = answers(plain, requests)
    for asked in (requests, requests[:5]):
        found = answers(static, asked)
        for key, answer in found.items():
            assert answer.tokens == expected[key].tokens and answer.finish == expected[key].finish
    assert static._static is not None and set(static._static[1].states) >= {"base", "antiexpert"}


def test_auto_is_static_on_a_gpu_only_and_scoring_gives_the_memory_back():
    ensemble = tiny_family()
    engine = HFEngine(ensemble, compile="auto")
    list(engine.generate([GenerateRequest(Prompt((5, 6)), 2)], ARMS))
    assert engine._static is None
    with pytest.raises(UserError, match=r"engine\.compile = 2: give auto, true or false"):
        HFEngine(ensemble, compile=2)


def test_a_compiled_model_reads_the_same(monkeypatch):
    """As torch.compile sees it; its default backend would take half a minute and a C++ compiler."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    member, rng = MEMBERS["llama"](), random.Random(0)
    rows = [some(rng, 6), some(rng, 3)]
    with torch.inference_mode():
        states = [StaticState(member, 16, graphs=False, compile=compiled) for compiled in (False, True)]
        for state in states:
            state.join(prefilled(member, rows))
        tokens = torch.tensor([[7], [8]])
        plain, compiled = (state.read(tokens) for state in states)
    torch.testing.assert_close(compiled, plain, **CLOSE)


@pytest.mark.parametrize("kind", MEMBERS)
def test_what_is_compiled_for_one_layer_serves_all(kind, monkeypatch):
    """As on a GPU: one graph for each kind of shape, and the model itself is left as it was."""
    count = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=count))
    member, rng = MEMBERS[kind](), random.Random(0)
    rows = [some(rng, 6), some(rng, 3)]
    blocks = next(m for m in member.model.modules() if isinstance(m, torch.nn.ModuleList))
    before = list(blocks)
    with torch.inference_mode():
        states = [StaticState(member, 32, graphs=False) for _ in range(2)]
        for state in states:
            state.join(prefilled(member, rows))
        states[1].model = by_layer(member.model, blocks)
        for width, graphs in ((1, 1), (1, 1), (4, 2), (5, 3), (3, 3), (1, 3)):
            tokens = torch.tensor([some(rng, width) for _ in rows])
            plain, compiled = (state.read(tokens) for state in states)
            torch.testing.assert_close(compiled, plain, **CLOSE)
            assert count.frame_count <= graphs
    assert count.frame_count >= 1 and list(blocks) == before


def test_loaded_members_read_in_static_caches(tmp_path, caplog):
    """With the attention that loading gives them; one whose layers see few tokens is said not to."""
    paths = save_family(tmp_path / "models")
    ensemble = load(FamilySpec(paths["base"], paths["antiexpert"]))
    states = StaticStates(ensemble.members | {"window": Member("window", tiny_mistral(V, seed=0), V)}, compile=False)
    states.make_room(20)
    with torch.inference_mode(), caplog.at_level("INFO"):
        taken = {role: states.take(role, prefilled(member, [[3, 4, 5]])) for role, member in states.members.items()}
    assert {role for role, state in taken.items() if isinstance(state, StaticState)} == {"base", "antiexpert"}
    said = [message.split()[0] for message in caplog.messages if "is read with a dynamic cache" in message]
    assert said == ["window"]
