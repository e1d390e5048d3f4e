"""Fills a Hugging Face cache with tiny random stand-ins under the real names, to try real configs offline.

    python scripts/fill_standins.py --hf-home CACHE --trained TRAINED
    HF_HOME=CACHE HF_HUB_OFFLINE=1 PROXYTUNE_TRAINED=TRAINED proxytune run experiment=liu2024_gsm8k_13b limit=4 ...

A stand-in has the real architecture, vocabulary size, head padding, special tokens, chat-template structure, stored
precision and window; its weights are random, its words invented, and its hidden size 16. What it answers is noise.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GenerationConfig,
    GPT2Tokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
)

TEXT = (
    "Answer the following question. Question: how many apples does she have left? Answer: 12 apples are left.",
    "The answer is: A. There are four options and one of them is true. Write a summary of the following article.",
    "Paris, London, Rome and Madrid are cities; 48 - 17 = 31 and 3 + 4 = 7 are sums. #### 31",
    " pass ..." * 50,  # one token each, as in the real ones: HumanEval bans them
    "The options are A, B, C and D: A or B or C or D.",
)
"""What the stand-ins' tokenizers are trained on, so that prompts are not spelt byte by byte."""


@dataclass(frozen=True)
class Kind:
    """What the models of one generation have in common."""

    tokenizer: Callable[[bool], PreTrainedTokenizerBase]
    """By whether it is a chat model's."""
    template: str
    """The chat template: same turns and special tokens as the real one."""
    config: type[PreTrainedConfig]
    model: type[PreTrainedModel]
    window: int
    dtype: torch.dtype
    base_has_template: bool = False


def pieces(wanted: int, words: dict[str, int]) -> dict[str, int]:
    """`words` filled up with invented ones to `wanted` entries."""
    start = len(words)
    return words | {f"zz{i}": i for i in range(start, wanted)}


@cache
def learned(byte_level: bool) -> tuple[list[str], list[tuple[str, str]]]:
    """Pieces and merges of a small BPE trained on TEXT, in the order in which they were learned."""
    bpe = Tokenizer(models.BPE())
    alphabet: list[str] = []
    if byte_level:
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        bpe.pre_tokenizer = pre_tokenizers.Metaspace(split=True)
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(TEXT, trainer)
    vocab = bpe.get_vocab()
    merges = [(left, right) for left, right in json.loads(bpe.to_str())["model"]["merges"]]
    return sorted(vocab, key=vocab.__getitem__), merges


def llama2(extra: Sequence[str] = ()) -> Callable[[bool], PreTrainedTokenizerBase]:
    """32,000 SentencePiece-like tokens with bytes to fall back on and `extra` ones; adds <s>; has no padding token."""

    def build(chat: bool) -> PreTrainedTokenizerBase:
        words, merges = learned(False)
        special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
        vocab = pieces(32_000, {word: i for i, word in enumerate([*special, *words])})
        tokenizer = LlamaTokenizer(vocab=vocab | {word: 32_000 + i for i, word in enumerate(extra)}, merges=merges)
        tokenizer.backend_tokenizer.post_processor = starting_with("<s>", 1)
        return tokenizer

    return build


def llama3(chat: bool) -> PreTrainedTokenizerBase:
    """128,000 byte-level tokens and 256 special ones; adds <|begin_of_text|>; has no padding token."""
    words, merges = learned(True)
    vocab = pieces(128_000, {word: i for i, word in enumerate(words)})
    named = {
        128_000: "<|begin_of_text|>",
        128_001: "<|end_of_text|>",
        128_004: "<|finetune_right_pad_id|>",
        128_006: "<|start_header_id|>",
        128_007: "<|end_header_id|>",
        128_008: "<|eom_id|>",
        128_009: "<|eot_id|>",
        128_010: "<|python_tag|>",
    }
    reserved = iter(range(256))
    special = [named.get(i) or f"<|reserved_special_token_{next(reserved)}|>" for i in range(128_000, 128_256)]
    bpe = byte_level(vocab, merges)
    bpe.add_special_tokens(special)
    bpe.post_processor = starting_with("<|begin_of_text|>", 128_000)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>" if chat else "<|end_of_text|>",
        clean_up_tokenization_spaces=False,
    )


def qwen25(chat: bool) -> PreTrainedTokenizerBase:
    """151,643 byte-level tokens and 22 added ones; no beginning-of-sequence token; pads with <|endoftext|>."""
    words, merges = learned(True)
    vocab = pieces(151_643, {word: i for i, word in enumerate(words)})
    added = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|standin_{i}|>" for i in range(19))]
    tokenizer = Qwen2Tokenizer(
        vocab=vocab | {token: 151_643 + i for i, token in enumerate(added)},
        merges=merges,
        eos_token="<|im_end|>" if chat else "<|endoftext|>",
        pad_token="<|endoftext|>",
    )
    tokenizer.add_tokens(added, special_tokens=True)
    return tokenizer


def smollm2(chat: bool) -> PreTrainedTokenizerBase:
    """49,152 byte-level tokens, 17 special ones first; only the chat models have a padding token."""
    words, merges = learned(True)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<standin_{i}>" for i in range(14))]
    vocab = pieces(49_152, {word: i for i, word in enumerate([*special, *words])})
    tokens = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    if not chat:
        tokens = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    tokenizer = GPT2Tokenizer(vocab=vocab, merges=merges, unk_token="<|endoftext|>", **tokens)
    tokenizer.add_tokens(special, special_tokens=True)
    return tokenizer


def byte_level(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    bpe = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return bpe


def starting_with(token: str, index: int) -> processors.TemplateProcessing:
    """What puts `token` before every text."""
    return processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B", special_tokens=[(token, index)]
    )


LLAMA2_CHAT = (
    "{% if messages[0].role == 'system' %}"
    "{% set system = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' %}{% set messages = messages[1:] %}"
    "{% else %}{% set system = '' %}{% endif %}"
    "{{ bos_token }}[INST] {{ system }}{{ messages[0].content | trim }} [/INST]"
)
ZEPHYR = (
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
LLAMA3_CHAT = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
    "{{ message.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a stand-in.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

HALF, BRAIN = torch.float16, torch.bfloat16
LLAMA2 = Kind(llama2(), LLAMA2_CHAT, LlamaConfig, LlamaForCausalLM, 4096, HALF)
TINYLLAMA = Kind(llama2(), ZEPHYR, LlamaConfig, LlamaForCausalLM, 2048, torch.float32)
CODELLAMA = Kind(
    llama2(["▁<PRE>", "▁<MID>", "▁<SUF>", "▁<EOT>", *(f"zzcode{i}" for i in range(12))]),
    LLAMA2_CHAT,
    LlamaConfig,
    LlamaForCausalLM,
    16_384,
    BRAIN,
)
LLAMA3 = Kind(llama3, LLAMA3_CHAT, LlamaConfig, LlamaForCausalLM, 131_072, BRAIN)
QWEN25 = Kind(qwen25, CHATML, Qwen2Config, Qwen2ForCausalLM, 32_768, BRAIN, base_has_template=True)
SMOLLM2 = Kind(smollm2, CHATML, LlamaConfig, LlamaForCausalLM, 8192, BRAIN)


@dataclass(frozen=True)
class Standin:
    kind: Kind
    rows: int
    """Rows of the head: the vocabulary, maybe padded."""
    chat: bool = False


REPOSITORIES: dict[str, Standin] = {
    **{f"meta-llama/Llama-2-{size}-hf": Standin(LLAMA2, 32_000) for size in ("7b", "13b", "70b")},
    **{f"meta-llama/Llama-2-{size}-chat-hf": Standin(LLAMA2, 32_000, chat=True) for size in ("7b", "13b", "70b")},
    "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T": Standin(TINYLLAMA, 32_000),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": Standin(TINYLLAMA, 32_000, chat=True),
    **{f"codellama/CodeLlama-{size}-Python-hf": Standin(CODELLAMA, 32_016) for size in ("7b", "13b", "70b")},
    **{f"meta-llama/Llama-{size}": Standin(LLAMA3, 128_256) for size in ("3.2-1B", "3.2-3B", "3.1-8B", "3.1-70B")},
    **{
        f"meta-llama/Llama-{size}-Instruct": Standin(LLAMA3, 128_256, chat=True)
        for size in ("3.2-1B", "3.2-3B", "3.1-8B", "3.1-70B")
    },
    **{
        f"Qwen/Qwen2.5-{size}{kind}": Standin(QWEN25, 151_936 if size in ("0.5B", "1.5B") else 152_064, chat=bool(kind))
        for size in ("0.5B", "1.5B", "7B", "72B")
        for kind in ("", "-Instruct")
    },
    **{f"Qwen/Qwen2.5-{size}": Standin(QWEN25, 152_064) for size in ("14B", "32B")},
    **{
        f"hkust-nlp/Qwen-2.5-{size}-SimpleRL-Zoo": Standin(QWEN25, 151_936 if size == "1.5B" else 152_064)
        for size in ("1.5B", "7B", "14B", "32B")
    },
    **{
        f"HuggingFaceTB/SmolLM2-{size}{kind}": Standin(SMOLLM2, 49_152, chat=bool(kind))
        for size in ("135M", "360M", "1.7B")
        for kind in ("", "-Instruct")
    },
}

TASKS = ("gsm8k", "triviaqa", "cnn_dailymail", "mmlu", "multitask")
TRAINED: dict[str, str] = {
    **{f"liu2024/llama2-{s}b/{t}": f"meta-llama/Llama-2-{s}b-hf" for s in (7, 13, 70) for t in ("gsm8k", "triviaqa")},
    **{f"eft2024/llama2-7b/{behaviour}": "meta-llama/Llama-2-7b-hf" for behaviour in ("helpful", "harmless")},
    "liu2024/llama2-7b/realtimeqa": "meta-llama/Llama-2-7b-hf",
    **{f"fan2024/llama2-13b/{t}": "meta-llama/Llama-2-13b-hf" for t in TASKS},
    **{f"fan2024/llama2-7b/{t}": "meta-llama/Llama-2-7b-hf" for t in (*TASKS, "task_arithmetic")},
    **{
        f"fan2024/tinyllama-1.1b/{t}": "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T"
        for t in (*TASKS, "task_arithmetic")
    },
}
"""Folders of models that users train themselves -> the repository that they are tuned from."""


def fill(hf_home: Path, repositories: Iterable[str] = tuple(REPOSITORIES)) -> None:
    """Puts a stand-in of each repository into the cache under `hf_home`, as if it had been downloaded from main."""
    for name in repositories:
        with tempfile.TemporaryDirectory() as scratch:
            build(Path(scratch), REPOSITORIES[name], seed=name)
            _into_cache(hf_home / "hub" / f"models--{name.replace('/', '--')}", Path(scratch))


def fill_trained(folder: Path, names: Iterable[str] = tuple(TRAINED)) -> None:
    """Puts a stand-in of every model that users train themselves under `folder`."""
    for name in names:
        target = folder / name
        target.mkdir(parents=True, exist_ok=True)
        build(target, REPOSITORIES[TRAINED[name]], seed=name)


@cache
def tokenizer_of(kind: Kind, chat: bool) -> PreTrainedTokenizerBase:
    tokenizer = kind.tokenizer(chat)
    if chat or kind.base_has_template:
        tokenizer.chat_template = kind.template
    return tokenizer


def build(folder: Path, standin: Standin, seed: str) -> None:
    """Writes config, random weights, tokenizer and, for a chat model, its stop tokens to `folder`."""
    kind = standin.kind
    tokenizer = tokenizer_of(kind, standin.chat)
    tokenizer.save_pretrained(folder)
    config = kind.config(
        vocab_size=standin.rows,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=kind.window,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big"))
        model = kind.model(config)
        for weight in model.parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=0.5)
        # A loud end-of-sequence token: answers are short, so that trying a config takes seconds.
        torch.nn.init.normal_(model.get_output_embeddings().weight.data[tokenizer.eos_token_id], std=6.0)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    model.to(kind.dtype).save_pretrained(folder)


def _into_cache(repository: Path, folder: Path) -> None:
    """Moves the files of `folder` to where the hub's client keeps a repository: blobs, a snapshot of links, a ref."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    commit = hashlib.sha1(repr(sorted(digests.items())).encode()).hexdigest()
    snapshot = repository / "snapshots" / commit
    for part in (repository / "blobs", repository / "refs", snapshot):
        part.mkdir(parents=True, exist_ok=True)
    for file in files:
        (repository / "blobs" / digests[file.name]).write_bytes(file.read_bytes())
        (snapshot / file.name).unlink(missing_ok=True)
        (snapshot / file.name).symlink_to(Path("../../blobs") / digests[file.name])
    (repository / "refs" / "main").write_text(commit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hf-home", type=Path, required=True, help="what HF_HOME is to be; made if need be")
    parser.add_argument(
        "--trained", type=Path, help="what PROXYTUNE_TRAINED is to be: models that users train themselves"
    )
    arguments = parser.parse_args()
    fill(arguments.hf_home)
    if arguments.trained is not None:
        fill_trained(arguments.trained)


if __name__ == "__main__":
    main()
