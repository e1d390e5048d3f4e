"""On a GPU the engine gives the tokens that it gives on a CPU in float32, with and without graphs."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_adapter_family, tiny_family

from proxytune.engines.hf import HFEngine
from proxytune.engines.requests import GenerateRequest, Prompt
from proxytune.fusion import MatchKL, Static
from proxytune.fusion.arm import Arm
from proxytune.models.ensemble import Ensemble
from proxytune.models.static_state import StaticState

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
ARMS = [
    Arm("base"),
    Arm("proxy", rule=Static(1.0), experts=("expert:math",)),
    Arm("dynamic", rule=MatchKL(), experts=("expert:math",)),
    Arm("both", rule=Static((0.5, 0.5)), experts=("expert:math", "expert:trivia")),
]


def requests(count: int) -> list[GenerateRequest]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 40, (count,), generator=generator).tolist()
    return [
        GenerateRequest(
            Prompt(tuple(torch.randint(3, 390, (length,), generator=generator).tolist())),
            max_new_tokens=12,
            temperature=0.7 * (i % 2),
            seed=i,
        )
        for i, length in enumerate(lengths)
    ]


def answers(ensemble: Ensemble, **options: object) -> dict[tuple[int, str], tuple[int, ...]]:
    engine = HFEngine(ensemble, **options)  # type: ignore[arg-type]
    return {(index, arm): answer.tokens for index, arm, answer in engine.generate(requests(10), ARMS)}


def on_gpu(ensemble: Ensemble) -> Ensemble:
    for member in ensemble.members.values():
        member.module.set_attn_implementation("sdpa")  # that of a CPU has no kernel here
        member.model.cuda()
    return ensemble


@pytest.mark.parametrize("make", [tiny_family, tiny_adapter_family])
@pytest.mark.parametrize(("size", "speculate"), [(1, "off"), (8, "off"), (8, 3)])
def test_tokens_are_those_of_a_cpu(make, size, speculate):
    expected = answers(make(), batch_size=8, speculate="off")
    ensemble = on_gpu(make())
    for compile in (False, "auto", True):
        assert answers(ensemble, batch_size=size, speculate=speculate, compile=compile) == expected


@torch.inference_mode()
def test_a_recorded_step_gives_the_logits_of_the_step_itself():
    member = on_gpu(tiny_family())["base"]
    states = [StaticState(member, 64, graphs) for graphs in (False, True)]
    for width in (1, 1, 4, 1):
        tokens = torch.randint(3, 390, (3, width))
        for state in states:
            if not state.rows:
                read = member.start(3)
                member.read(read, torch.randint(3, 390, (3, 9), generator=torch.Generator().manual_seed(0)))
                state.join(read)
        plain, recorded = (state.read(tokens) for state in states)
        states[1].finish()
        torch.testing.assert_close(recorded, plain, atol=1e-4, rtol=1e-5)
    assert len(states[1].graphs.recorded) == 2
