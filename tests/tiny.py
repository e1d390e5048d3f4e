"""Tiny real models and a real tokenizer, made in memory: a family whose members differ in kind, size and padding.

    tiny_family()                       Ensemble: base, antiexpert, two experts (a Llama and a GPT-2), two tuned
    tiny_adapter_family()               Ensemble: experts are LoRA adapters over the antiexpert's module
    save_family(folder)                 the same family as folders: {role: path}
    save_adapter_family(folder)         the same, adapters as adapter folders

Weights are random but wide, so that the logits are far apart and follow the context: equal tokens mean equal maths.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from proxytune.models.ensemble import Ensemble
from proxytune.models.loading.modules import share_keys
from proxytune.models.member import ADAPTERS_OFF, Member

WINDOW = 256
"""Positions every tiny model can read."""
EXPERTS = ("math", "trivia")
"""Default experts: "math" is a Llama, "trivia" a GPT-2."""
CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

_TEXT = (
    "Answer the following question. Question: how many apples are there? Answer: there are 12 apples in the red box.",
    "The answer is: (A) Paris, (B) London, (C) Rome, (D) Madrid. In which country does the river begin?",
    "She had 48 coins and gave 17 to her brother; how much is left? 48 - 17 = 31. It is a long way to the sea.",
)


def tiny_tokenizer(extra: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A byte-level BPE of about 400 tokens that can spell any text; `extra` are real tokens added at the end."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_bpe()),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=WINDOW,
    )
    tokenizer.chat_template = CHAT
    if extra:
        tokenizer.add_tokens(list(extra))
    return tokenizer


@lru_cache(maxsize=1)
def _bpe() -> str:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_TEXT, trainer)
    return bpe.to_str()


def tiny_llama(
    vocab_size: int, *, seed: int, hidden: int = 32, layers: int = 2, heads: int = 4, kv_heads: int = 2
) -> LlamaForCausalLM:
    """A random Llama with `vocab_size` head rows."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=WINDOW,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return _wide(LlamaForCausalLM, config, seed)


def tiny_mistral(vocab_size: int, *, seed: int) -> MistralForCausalLM:
    """A random Mistral whose layers see five tokens."""
    config = MistralConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=5,
    )
    return _wide(MistralForCausalLM, config, seed)


def tiny_gpt2(vocab_size: int, *, seed: int, hidden: int = 24, layers: int = 2, heads: int = 2) -> GPT2LMHeadModel:
    """A random GPT-2 (learned positions, tied head) with `vocab_size` head rows."""
    config = GPT2Config(
        vocab_size=vocab_size,
        n_embd=hidden,
        n_layer=layers,
        n_head=heads,
        n_positions=WINDOW,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return _wide(GPT2LMHeadModel, config, seed)


def tiny_qwen2(vocab_size: int, *, seed: int, hidden: int = 32, layers: int = 2) -> Qwen2ForCausalLM:
    """A random Qwen2 (biases in its attention, a tied head) with `vocab_size` head rows."""
    config = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=WINDOW,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return _wide(Qwen2ForCausalLM, config, seed)


def _wide(kind: type, config: PreTrainedConfig, seed: int):
    """A model of `kind` whose matrices are random enough that its logits are several units apart."""
    with _seeded(seed):
        model = kind(config).eval()
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                std = 0.6 if "head" in name or "embed" in name or "wte" in name else 2.0 * weight.shape[-1] ** -0.5
                torch.nn.init.normal_(weight, std=std)
    return model


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def tiny_models(
    vocab_size: int, experts: Sequence[str] = EXPERTS, tuned: Sequence[str] = EXPERTS
) -> dict[str, PreTrainedModel]:
    """Models by role, each of its own size and with its own number of padding rows beyond `vocab_size`."""
    small: dict[str, PreTrainedModel] = {
        "base": tiny_llama(vocab_size + 12, seed=1, hidden=48, layers=3),
        "antiexpert": tiny_llama(vocab_size + 5, seed=2, hidden=32),
    }
    for i, name in enumerate(experts):
        if name == "trivia":
            small[f"expert:{name}"] = tiny_gpt2(vocab_size + 3, seed=10 + i)
        else:
            small[f"expert:{name}"] = tiny_llama(vocab_size + i, seed=10 + i, hidden=32 + 8 * i)
    for i, name in enumerate(tuned):
        small[f"tuned:{name}"] = tiny_llama(vocab_size + 12, seed=30 + i, hidden=48, layers=3)
    return small


def tiny_family(experts: Sequence[str] = EXPERTS, tuned: Sequence[str] = EXPERTS) -> Ensemble:
    """The family in memory; the expert called "trivia" is a GPT-2, the others are Llamas."""
    tokenizer = tiny_tokenizer()
    vocab_size = len(tokenizer)
    members = {
        role: Member(role, model, vocab_size, identity=f"tiny:{role}")
        for role, model in tiny_models(vocab_size, experts, tuned).items()
    }
    return Ensemble(as_loaded(members), tokenizer)


def as_loaded(members: dict[str, Member]) -> dict[str, Member]:
    """With the attention that `load` gives to models on a CPU."""
    for member in members.values():
        share_keys(member.module)
    return members


def tiny_peft(vocab_size: int, adapters: Sequence[str] = EXPERTS) -> PeftModel:
    """The antiexpert's module with one random LoRA adapter per name."""
    model = tiny_llama(vocab_size + 5, seed=2, hidden=32)
    peft: PeftModel | None = None
    for i, name in enumerate(adapters):
        config = LoraConfig(
            r=4,
            lora_alpha=8,
            target_modules=["q_proj", "v_proj", "down_proj"],
            init_lora_weights=False,
            task_type="CAUSAL_LM",
        )
        with _seeded(50 + i):
            if peft is None:
                peft = get_peft_model(model, config, adapter_name=name)
            else:
                peft.add_adapter(name, config)
            _widen_adapter(peft, name)
    assert peft is not None
    return peft.eval().requires_grad_(False)


def _widen_adapter(peft: PeftModel, name: str) -> None:
    for key, weight in peft.named_parameters():
        if f".{name}." in key:
            torch.nn.init.normal_(weight, std=0.3)


def tiny_adapter_family(experts: Sequence[str] = EXPERTS) -> Ensemble:
    """base, and one shared PEFT module that is the antiexpert (adapters off) and every expert (its adapter on)."""
    tokenizer = tiny_tokenizer()
    vocab_size = len(tokenizer)
    shared = tiny_peft(vocab_size, experts)
    members = {
        "base": Member(
            "base", tiny_llama(vocab_size + 12, seed=1, hidden=48, layers=3), vocab_size, identity="tiny:base"
        ),
        "antiexpert": Member("antiexpert", shared, vocab_size, adapter=ADAPTERS_OFF, identity="tiny:antiexpert"),
    }
    for name in experts:
        role = f"expert:{name}"
        members[role] = Member(role, shared, vocab_size, adapter=name, identity=f"tiny:{role}")
    return Ensemble(as_loaded(members), tokenizer)


def save_family(folder: Path, experts: Sequence[str] = EXPERTS, tuned: Sequence[str] = EXPERTS) -> dict[str, Path]:
    """Writes every member and its tokenizer as an ordinary Hugging Face folder; returns {role: path}."""
    tokenizer = tiny_tokenizer()
    models_by_role = tiny_models(len(tokenizer), experts, tuned)
    return {
        role: save_member(folder / role.replace(":", "-"), model, tokenizer) for role, model in models_by_role.items()
    }


def save_member(path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Path:
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def save_adapter_family(folder: Path, experts: Sequence[str] = EXPERTS) -> dict[str, Path]:
    """Writes base, antiexpert and one adapter folder per expert; returns {role: path}."""
    tokenizer = tiny_tokenizer()
    vocab_size = len(tokenizer)
    paths = {
        "base": save_member(folder / "base", tiny_llama(vocab_size + 12, seed=1, hidden=48, layers=3), tokenizer),
        "antiexpert": save_member(folder / "antiexpert", tiny_llama(vocab_size + 5, seed=2, hidden=32), tokenizer),
    }
    peft = tiny_peft(vocab_size, experts)
    for name in experts:
        peft.peft_config[name].base_model_name_or_path = str(paths["antiexpert"])
        peft.save_pretrained(folder, selected_adapters=[name])
        paths[f"expert:{name}"] = folder / name
    return paths


def free_port() -> int:
    """A port for a server that starts later: below those that the kernel hands out, which others might get first."""
    while True:
        port = random.SystemRandom().randrange(20_000, 30_000)
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
