"""What vLLM derives from its one model is each member's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from families import save
from vllm.engine.arg_utils import EngineArgs

from proxytune.engines.vllm.launch import engine_arguments
from proxytune.engines.vllm.members import member_config
from proxytune.engines.vllm.settings import FusedSettings, Place
from proxytune.models import FamilySpec, describe


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


def test_plain_lora_experts_go_through_the_weights_of_their_model_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """An adapter of another form, one without company and a second process have a merged copy instead."""
    monkeypatch.setenv("PROXYTUNE_CACHE", str(tmp_path / "cache"))
    family = save("adapters", tmp_path)
    assert family.antiexpert is not None
    settings = _settings(family)
    together = ("antiexpert", "expert:math", "expert:trivia")
    assert settings.modules == [("base",), together, ("expert:dora",)]
    assert settings.members["expert:dora"].path.startswith(str(tmp_path / "cache"))
    apart = _settings(family, tensor_parallel=2)
    assert [len(roles) for roles in apart.modules] == [1] * 5
    alone = FamilySpec.of({"base": family.base, "tuned": {"math": family.experts["math"]}})
    assert all(place.adapter is None for place in _settings(alone).members.values())


def _settings(family: FamilySpec, **options: Any) -> FusedSettings:
    return FusedSettings.from_dict(engine_arguments(describe(family), family, **options)["hf_overrides"]["proxytune"])
