"""Tiny families as folders, and what a slow loop over transformers modules answers: no cache, no batch, one request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from engine_reference import fused_after
from peft import LoraConfig, get_peft_model
from tiny import WINDOW, _wide, save_member, tiny_llama, tiny_tokenizer
from transformers import (
    AutoModelForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from proxytune.engines.requests import Prompt
from proxytune.fusion.arm import Arm
from proxytune.models import Ensemble, FamilySpec

TOKENIZER = tiny_tokenizer(["<|endoftext|>"])
"""With the token that transformers adds to the tokenizer of every Qwen2."""
V = len(TOKENIZER)
COMMON = {"max_position_embeddings": WINDOW, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def qwen2(seed: int, hidden: int = 64, padding: int = 0) -> PreTrainedModel:
    """A Qwen2 with a tied head and `padding` rows of it beyond the vocabulary."""
    config = Qwen2Config(
        vocab_size=V + padding,
        hidden_size=hidden,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        **COMMON,
    )
    return _wide(Qwen2ForCausalLM, config, seed)


def mistral(seed: int, window: int) -> PreTrainedModel:
    """A Mistral whose layers all see `window` tokens."""
    config = MistralConfig(
        vocab_size=V + 12,
        hidden_size=128,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=window,
        **COMMON,
    )
    return _wide(MistralForCausalLM, config, seed)


def llama(seed: int, padding: int = 0, hidden: int = 64, **sizes: int) -> PreTrainedModel:
    """Heads of 32: what vLLM's attention on a CPU can do."""
    return tiny_llama(V + padding, seed=seed, hidden=hidden, heads=hidden // 32, kv_heads=1, **sizes)


FAMILIES = {
    "llama": lambda: {
        "base": llama(1, 12, hidden=128, layers=4),
        "antiexpert": llama(2, 5),
        "expert:math": llama(3),
        "expert:trivia": llama(4, 3),
    },
    "qwen2": lambda: {
        "base": llama(5, hidden=128, layers=3),
        "antiexpert": qwen2(6, padding=7),
        "expert:math": qwen2(7),
        "expert:trivia": qwen2(8, padding=3),
    },
    "sliding": lambda: {"base": mistral(9, window=32), "antiexpert": llama(10), "expert:math": llama(11)},
    "sliding_expert": lambda: {"base": llama(12), "antiexpert": llama(13), "expert:math": mistral(14, window=32)},
}


def save(kind: str, folder: Path) -> FamilySpec:
    """The family as folders; "adapters" has experts that are LoRA adapters over the antiexpert."""
    if kind == "adapters":
        return _save_adapters(folder)
    return save_members(folder, FAMILIES[kind]())


def save_members(folder: Path, members: Mapping[str, PreTrainedModel]) -> FamilySpec:
    """The models by role as folders of one family."""
    paths = {role: save_member(folder / role.replace(":", "-"), model, TOKENIZER) for role, model in members.items()}
    experts = {role.removeprefix("expert:"): path for role, path in paths.items() if role.startswith("expert:")}
    return FamilySpec.of({"base": paths["base"], "antiexpert": paths["antiexpert"], "experts": experts})


def _save_adapters(folder: Path) -> FamilySpec:
    """Two experts that are plain LoRA over the antiexpert, one of them of rank 24 (vLLM takes 16 by default), and one
    of another form, which is merged."""
    family = save("sliding_expert", folder)
    assert family.antiexpert is not None
    experts = {}
    for seed, name in enumerate(("math", "trivia", "dora")):
        torch.manual_seed(seed)
        form: dict[str, Any] = {"use_dora": name == "dora", "use_rslora": name == "trivia"}
        form |= {"r": 4 + 20 * seed, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
        config = LoraConfig(init_lora_weights=False, **form)
        adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(family.antiexpert.path), config)
        for key, weight in adapted.named_parameters():
            if "lora_" in key:
                torch.nn.init.normal_(weight, std=0.3)
        adapted.save_pretrained(folder / name)
        experts[name] = {"path": family.antiexpert.path, "adapter": folder / name}
    return FamilySpec.of({"base": family.base, "antiexpert": family.antiexpert, "experts": experts})


def prompts(count: int, longest: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Random prompts of 1 to `longest` tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [1, longest, *torch.randint(2, longest, (count - 2,), generator=generator).tolist()]
    return [tuple(torch.randint(3, V, (length,), generator=generator).tolist()) for length in lengths]


def wrong(ensemble: Ensemble, arm: Arm, prompt: Sequence[int], answer: Sequence[int]) -> list[int]:
    """The places of `answer` at which the slow loop, which has read the same tokens, chooses another one."""
    fused = fused_after(ensemble, arm, Prompt(tuple(prompt)), tuple(answer)).logits[: len(answer)]
    return [i for i, token in enumerate(answer) if fused[i].argmax() != token]
