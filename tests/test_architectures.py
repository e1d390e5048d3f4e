"""Architectures: a row means the same alone, in a batch, at once and through a cache, or the model is refused."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny import save_member, tiny_tokenizer
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from proxytune import FusedCausalLM
from proxytune.engines.hf import HFEngine
from proxytune.engines.requests import GenerateRequest, Prompt
from proxytune.errors import UserError
from proxytune.fusion.arm import Arm
from proxytune.models import Ensemble, FamilySpec, Member, load
from proxytune.models.loading.trial import check_reading
from proxytune.models.positions import boundary, window

V = 99
WINDOW = 128
LENGTHS = 5, 12, 20, 31
STEPS = 3
DOCS = Path(__file__).parents[1] / "docs" / "checks.md"

SETTINGS: dict[str, Any] = dict(
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), V),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "d_ff", "mamba_d_ssm", "encoder_ffn_dim"), 64),
    **dict.fromkeys(("decoder_ffn_dim", "shared_expert_intermediate_size"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "num_experts", "num_local_experts", "linear_num_value_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_experts_per_tok", "linear_num_key_heads"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), WINDOW),
    **dict.fromkeys(("head_dim", "rotary_dim", "sliding_window", "linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_d_head", "mamba_d_state", "state_size", "attention_chunk_size"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "moe_intermediate_size"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    n_routed_experts=4,
    **dict.fromkeys(("mamba_n_groups", "n_group", "topk_group", "n_shared_experts"), 1),
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    tie_word_embeddings=False,
)
"""What makes a model tiny, by whatever name its configuration has for it."""

ROPE = {"rope_theta": 10_000.0, "original_max_position_embeddings": WINDOW}
LONGROPE = {**ROPE, "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0, 6.0, 8.0, 9.0]}
PLAIN = """
apertus arcee biogpt bloom codegen cohere cohere2 ctrl ernie4_5 exaone4 falcon falcon_h1 gemma
gemma2 gemma3_text glm4 gpt2 gpt_bigcode gpt_neox gpt_oss gptj granite granitemoe helium jetmoe
llama llama4_text minimax_m2 ministral mistral mixtral mpt nanochat nemotron olmo2 olmo3 olmo_hybrid
olmoe opt persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_moe seed_oss smollm3 stablelm
starcoder2 xglm
""".split()  # noqa: SIM905
RIGHT: dict[str, dict[str, Any]] = {name: {} for name in PLAIN} | {
    "bamba": {"attn_layer_indices": [1]},
    "deepseek_v3": {"num_key_value_heads": 4},
    "falcon (alibi)": {"alibi": True, "new_decoder_architecture": False, "multi_query": False},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {"num_hidden_layers": 8, "attn_layer_period": 4, "attn_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "llama (linear)": {"rope_parameters": {**ROPE, "rope_type": "linear", "factor": 8.0}},
    "llama (llama3)": {
        "rope_parameters": {
            **ROPE,
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
    "llama (yarn)": {
        "rope_parameters": {**ROPE, "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16}
    },
    "llama (dynamic)": {"rope_parameters": {**ROPE, "rope_type": "dynamic", "factor": 8.0}},
    "phi3 (longrope)": {
        "max_position_embeddings": 4 * WINDOW,
        "original_max_position_embeddings": WINDOW,
        "rope_parameters": LONGROPE,
    },
    "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
}
NO_CACHE = "can't be members: they keep what they read in no KV cache"
APART = "is not supported: a row read in a batch"
FAILS = "can't be read through a cache"
REFUSED = {
    **dict.fromkeys(("falcon_mamba", "mamba", "openai-gpt", "rwkv", "xlnet", "xlstm"), NO_CACHE),
    **dict.fromkeys(("bart", "bert", "marian", "recurrent_gemma", "roberta"), APART),
    "minimax": FAILS,
}


def build(name: str, **more: Any) -> PreTrainedModel:
    kind = name.split(" ")[0]
    default = AutoConfig.for_model(kind)
    known = {*inspect.signature(type(default).__init__).parameters, *vars(default)}
    settings = {key: value for key, value in SETTINGS.items() if key in known}
    config = type(default)(**settings | RIGHT.get(name, {}) | more)
    layers = getattr(config, "layer_types", None)
    if layers is not None and len(layers) > config.num_hidden_layers:
        config.layer_types = [layers[0], layers[-1]]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind])(config).eval()
        for key, weight in model.named_parameters():
            if weight.dim() == 2 and weight.numel() > 64:
                wide = 0.6 if "head" in key or "embed" in key else 2 * weight.shape[-1] ** -0.5
                torch.nn.init.normal_(weight, std=wide)
    return model


def texts(lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    seeded = torch.Generator().manual_seed(0)
    return [torch.randint(3, V, (length + STEPS,), generator=seeded).tolist() for length in lengths]


def read(member: Member, rows: list[list[int]]) -> torch.Tensor:
    """Logits after the last STEPS + 1 tokens of `rows` read as engines do: [B, STEPS + 1, V]."""
    width = max(map(len, rows))
    tokens = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    state = member.start(len(rows))
    parts = [slice(0, width - STEPS), *(slice(at, at + 1) for at in range(width - STEPS, width))]
    return torch.cat([member.read(state, tokens[:, part], mask[:, part]) for part in parts], dim=1)


@torch.inference_mode()
def alone(model: PreTrainedModel, row: list[int]) -> torch.Tensor:
    """The same of one row in one pass without a cache."""
    return model(torch.tensor([row]), use_cache=False).logits[0, -STEPS - 1 :, :V].float()


@pytest.mark.parametrize("name", RIGHT)
def test_a_batch_through_a_cache_is_each_row_alone(name):
    model = build(name)
    member = Member("base", model, V)
    check_reading([member])
    for row, found in zip(texts(), read(member, texts()), strict=True):
        torch.testing.assert_close(found.float(), alone(model, row), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_wrong_is_refused(name):
    with pytest.raises(UserError, match=re.escape(REFUSED[name])) as error:
        check_reading([Member("base", build(name), V)])
    assert str(error.value).startswith(f"base: {name}") and "\n" not in str(error.value)


def test_a_folder_is_refused_before_anything_is_evaluated(tmp_path):
    tokenizer = tiny_tokenizer()
    save_member(tmp_path, build("bert", vocab_size=len(tokenizer)), tokenizer)
    with pytest.raises(UserError, match=f"base: bert {APART}"):
        load(FamilySpec(tmp_path))
    with pytest.raises(UserError, match=f"base: bert {APART}"):
        FusedCausalLM.compose(build("bert", vocab_size=len(tokenizer)), tokenizer=tokenizer)


def test_a_model_that_gives_nan_is_left_to_the_evaluation():
    model = build("llama")
    torch.nn.init.constant_(model.get_output_embeddings().weight, float("nan"))
    check_reading([Member("base", model, V)])


def test_the_documentation_lists_what_is_tried_here():
    table = DOCS.read_text(encoding="utf-8").split("## Architectures")[1]
    right, refused = (
        set(re.findall(r"`([^`]+)`", part)) for part in table.split("**Supported:**")[1].split("**Refused:**")
    )
    assert right == set(RIGHT) and refused == set(REFUSED)


# --- windows, and rows that depend on each other --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected", "end"),
    [
        ("llama", WINDOW, None),
        ("llama (llama3)", WINDOW, None),
        ("llama (linear)", 8 * WINDOW, None),
        ("llama (yarn)", WINDOW, None),  # 8 x 16: stated as stretched already
        ("llama (dynamic)", WINDOW, WINDOW),
        ("phi3 (longrope)", WINDOW, WINDOW),
        ("gemma3_text", WINDOW, None),
        ("gpt2", WINDOW, None),
        ("bloom", None, None),
    ],
)
def test_the_window_is_the_stretched_one_and_ends_where_rows_depend_on_each_other(name, expected, end):
    model = build(name)
    assert (window(model.config), boundary(model.config)) == (expected, end)
    assert Member("base", model, V).window == expected


def test_yarn_stretches_what_it_was_made_from():
    """As in the configurations of Qwen2.5 for long texts; DeepSeek's state the stretched window itself."""
    yarn = {**ROPE, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": WINDOW}
    assert window(build("llama", rope_parameters=yarn).config) == 4 * WINDOW
    assert window(build("llama", rope_parameters=yarn, max_position_embeddings=4 * WINDOW).config) == 4 * WINDOW


def test_embeddings_of_each_kind_of_layer_are_looked_through():
    nested = {"full_attention": {**LONGROPE, "original_max_position_embeddings": 16}, "sliding_attention": dict(ROPE)}
    config = build("gemma3_text").config
    config.rope_parameters = nested
    assert boundary(config) == window(config) == 16


@pytest.mark.parametrize("name", ["phi3 (longrope)", "llama (dynamic)"])
def test_no_row_gets_the_factors_of_a_longer_one(name):
    """A short row beside one beyond the boundary was 5 nats off."""
    model = build(name)
    member, beyond = Member("base", model, V), texts((5, WINDOW))
    assert (alone(model, beyond[0]) - model(torch.tensor([beyond[0]])).logits[0, -STEPS - 1 :]).abs().max() < 1e-4
    with pytest.raises(UserError, match=f"base reads at most {WINDOW} tokens: beyond these the rotary factors"):
        read(member, beyond)
    within = texts((5, WINDOW - STEPS))
    for row, found in zip(within, read(member, within), strict=True):
        torch.testing.assert_close(found, alone(model, row), atol=1e-4, rtol=1e-5)
    tokenizer = tiny_tokenizer()
    ensemble = Ensemble({"base": Member("base", build(name, vocab_size=400), len(tokenizer))}, tokenizer)
    request = GenerateRequest(Prompt(tuple(within[1][:-1])), max_new_tokens=9)
    with pytest.raises(UserError, match=f"base reads at most {WINDOW} tokens and would need"):
        list(HFEngine(ensemble).generate([request], [Arm("base")]))
    fused = FusedCausalLM.from_ensemble(ensemble)
    with pytest.raises(UserError, match=f"base reads at most {WINDOW} tokens"):
        fused.generate(torch.tensor([within[1]]), max_new_tokens=9, eos_token_id=-1)
