"""What vLLM derives from its one model is each member's own."""

from __future__ import annotations

from pathlib import Path

from families import save
from vllm.engine.arg_utils import EngineArgs

from proxytune.engines.vllm.launch import engine_arguments
from proxytune.engines.vllm.members import member_config
from proxytune.engines.vllm.settings import Place
from proxytune.models import describe


def test_window_sizes_and_compile_key_are_the_members_own(tmp_path: Path):
    """The base's layers all see 32 tokens, the others' all; expert and antiexpert have one shape."""
    family = save("sliding", tmp_path)
    config = EngineArgs(**engine_arguments(describe(family), family, memory=1)).create_engine_config()
    assert config.cache_config.sliding_window == 32
    places = {role: Place(source.path) for role, source in family.sources.items()}
    own = {role: member_config(config, place, f"member_{i}") for i, (role, place) in enumerate(places.items())}
    assert {role: one.cache_config.sliding_window for role, one in own.items()} == {
        "base": 32,
        "antiexpert": None,
        "expert:math": None,
    }
    assert config.cache_config.sliding_window == 32, "vLLM's own is left alone"
    assert [one.model_config.get_hidden_size() for one in own.values()] == [128, 64, 64]
    assert [one.model_config.hf_text_config.num_attention_heads for one in own.values()] == [4, 2, 2]
    assert [one.model_config.architectures for one in own.values()] == [
        ["MistralForCausalLM"],
        ["LlamaForCausalLM"],
        ["LlamaForCausalLM"],
    ]
    assert len({one.compute_hash() for one in own.values()}) == 3, "equal shapes must not share compiled code"
    assert all(one.quant_config is None for one in own.values())
