"""What vLLM derives from its one model is each member's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from families import TOKENIZER, V, llama, save
from tiny import WINDOW, save_member, tiny_tokenizer
from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel
from vllm.engine.arg_utils import EngineArgs

from proxytune.engines.vllm.launch import engine_arguments
from proxytune.engines.vllm.members import member_config
from proxytune.engines.vllm.settings import FusedSettings, Place
from proxytune.errors import UserError
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


def test_members_that_do_not_fit_are_one_line(tmp_path: Path):
    """An architecture that vLLM does not know, an expert with another vocabulary, and one whose head is too small."""
    config = OpenAIGPTConfig(vocab_size=V, n_positions=WINDOW, n_embd=64, n_layer=1, n_head=2)
    unknown = save_member(tmp_path / "unknown", OpenAIGPTLMHeadModel(config), TOKENIZER)
    small = save_member(tmp_path / "small", llama(1, padding=-5), TOKENIZER)
    other = save_member(tmp_path / "other", llama(1), tiny_tokenizer(["<|other|>"]))
    base = save_member(tmp_path / "base", llama(1), TOKENIZER)
    for expert, message in (
        (unknown, "expert:math: vLLM knows no architecture OpenAIGPTLMHeadModel: use engine=hf, or another model"),
        (small, f"expert:math: the model's head has {V - 5} rows, but its tokenizer knows tokens up to id {V - 1}"),
        (other, "expert:math"),
    ):
        family = FamilySpec.of({"base": base, "antiexpert": base, "experts": {"math": expert}})
        with pytest.raises(UserError, match=message) as refused:
            engine_arguments(describe(family), family)
        assert "\n" not in str(refused.value)


def test_a_quantised_member_leaves_the_others_as_they_are(tmp_path: Path):
    """Whichever of them is vLLM's own model; and what is done while loading is done to those that are not."""
    family = save("sliding_expert", tmp_path)
    for role in ("base", "expert:math"):
        _call_quantised(Path(family.weights(role).path))
    arguments = engine_arguments(describe(family, ("antiexpert",)), family, memory=1, quantization="fp8_per_channel")
    config = EngineArgs(**arguments | {"dtype": "bfloat16"}).create_engine_config()
    places = {role: Place(source.path) for role, source in family.sources.items()}
    found = {role: member_config(config, place, "member").quant_config for role, place in places.items()}
    assert [type(one).__name__ for one in found.values()] == ["Fp8Config", "OnlineQuantizationConfig", "Fp8Config"]
    config = EngineArgs(model=places["base"].path, dtype="bfloat16", hf_overrides=arguments["hf_overrides"])
    found = {
        role: member_config(config.create_engine_config(), place, "member").quant_config
        for role, place in places.items()
    }
    assert [type(one).__name__ for one in found.values()] == ["Fp8Config", "NoneType", "Fp8Config"]


def test_an_adapter_over_a_quantised_checkpoint_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PROXYTUNE_CACHE", str(tmp_path / "cache"))
    family = save("adapters", tmp_path)
    settings = _settings(family, quantization="fp8_per_channel")
    assert [len(roles) for roles in settings.modules] == [1] * 5, "vLLM quantises merged copies"
    base, expert = (Path(family.weights(role).path) for role in ("base", "expert:math"))
    _call_quantised(expert)
    adapted = {"path": expert, "adapter": family.experts["math"].adapter, "dtype": "float32"}
    family = FamilySpec.of({"base": base, "tuned": {"math": adapted}})
    with pytest.raises(UserError, match="tuned:math: its checkpoint is quantised, so its adapter cannot be"):
        engine_arguments(describe(family), family)


def _call_quantised(folder: Path) -> None:
    """The model's configuration says that its weights are in eight bits."""
    file = folder / "config.json"
    stored = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": stored}))
