"""Little memory for KV caches: prompts read in pieces, requests thrown out and read again, prefixes shared."""

from __future__ import annotations

from pathlib import Path

import pytest
from families import TOKENIZER, V, prompts, save, wrong
from tiny import WINDOW, save_member, tiny_gpt2
from vllm import LLM, SamplingParams

from proxytune.engines.requests import GenerateRequest, Prompt
from proxytune.engines.vllm.engine import VLLMEngine
from proxytune.engines.vllm.launch import engine_arguments
from proxytune.engines.vllm.settings import arm_to_dict
from proxytune.errors import UserError
from proxytune.fusion import MatchKL, Static
from proxytune.fusion.arm import Arm
from proxytune.models import FamilySpec, describe, load

NEW = 40


def test_chunks_preemption_and_shared_prefixes_change_nothing(tmp_path: Path):
    family = save("llama", tmp_path)
    ensemble = load(family)
    llm = LLM(
        **engine_arguments(describe(family), family, memory=1),
        enforce_eager=True,
        max_num_seqs=24,
        max_num_batched_tokens=64,
        num_gpu_blocks_override=40,
        block_size=32,
        disable_log_stats=False,
    )
    expert = ("expert:math",)
    arms = [Arm("base"), Arm("dynamic", rule=MatchKL(), experts=expert)]
    arms += [Arm(f"{w}", rule=Static(w), experts=expert) for w in (1.0, 0.3, -0.5, 1.5)]
    prefix = prompts(2, 70, seed=5)[1]
    given = [(*prefix, *tokens) for tokens in prompts(24, 60, seed=6)]
    for _ in range(2):  # the second time the prefixes are in the cache
        chosen = [arms[i % len(arms)] for i in range(24)]
        params = [
            SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True, extra_args={"arm": arm_to_dict(arm)})
            for arm in chosen
        ]
        outputs = llm.generate([{"prompt_token_ids": list(p)} for p in given], params, use_tqdm=False)
        for arm, prompt, output in zip(chosen, given, outputs, strict=True):
            assert wrong(ensemble, arm, prompt, output.outputs[0].token_ids) == [], arm.name
    counted = {metric.name: getattr(metric, "value", 0) for metric in llm.get_metrics()}
    assert counted["vllm:num_preemptions"] > 0
    assert counted["vllm:prefix_cache_hits"] > 0


def test_heads_without_a_kernel_are_one_line(tmp_path: Path):
    family = FamilySpec.of({"base": save_member(tmp_path, tiny_gpt2(V, seed=1), TOKENIZER)})
    with pytest.raises(UserError, match="base: its attention heads are 12 wide; on a CPU vLLM knows 32, 64"):
        engine_arguments(describe(family), family)


def test_a_request_beyond_the_limit_is_one_line(tmp_path: Path):
    family, arms = save("sliding_expert", tmp_path), [Arm("base")]
    with pytest.raises(UserError, match=f"max_model_len=1000 .* from 2 to {WINDOW + 1}"):
        engine_arguments(describe(family), family, max_model_len=1000)
    engine = VLLMEngine(describe(family), family, memory=0.1, max_model_len=50)
    with pytest.raises(UserError, match="base reads at most 49 tokens and would need 50"):
        list(engine.generate([GenerateRequest(Prompt((5,) * 40), 11)], arms))
    [(_, _, answer)] = engine.generate([GenerateRequest(Prompt((5,) * 40), 10)], arms)
    assert answer.finish == "eos" or len(answer.tokens) == 10
    engine.close()


def test_memory_that_holds_no_request_is_one_line(tmp_path: Path):
    family = save("sliding_expert", tmp_path)
    with pytest.raises(UserError, match=r"vLLM refuses this engine: .*memory") as refused:
        VLLMEngine(describe(family), family, memory=1e-4)
    assert "\n" not in str(refused.value)
