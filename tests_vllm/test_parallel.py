"""Two processes share each member (tensor parallelism), here on one CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
from families import prompts, save, wrong

from proxytune.engines.requests import GenerateRequest, Prompt
from proxytune.engines.vllm.engine import VLLMEngine
from proxytune.fusion import MatchKL, Static
from proxytune.fusion.arm import Arm
from proxytune.models import describe, load


def test_answers_and_weights_are_those_of_the_slow_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    family = save("llama", tmp_path)
    ensemble = load(family)
    engine = VLLMEngine(describe(family), family, batch_size=8, memory=0.5, tensor_parallel=2)
    experts = ("expert:math", "expert:trivia")
    arms = [
        Arm("base"),
        Arm("mixed", rule=Static((0.7, -0.4)), experts=experts),
        Arm("dynamic", rule=MatchKL(), experts=experts),
    ]
    requests = [GenerateRequest(Prompt(tokens), 16) for tokens in prompts(6, 60)]
    for i, name, answer in engine.generate(requests, arms):
        arm = next(arm for arm in arms if arm.name == name)
        assert wrong(ensemble, arm, requests[i].prompt.tokens, answer.tokens) == [], (i, name)
        assert len(answer.weights) == len(arm.experts)
        if name == "mixed":
            assert answer.weights[0] == pytest.approx([0.7] * len(answer.tokens))
            assert answer.weights[1] == pytest.approx([-0.4] * len(answer.tokens))
    engine.close()
