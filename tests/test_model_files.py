"""A model folder is read whole, and each of its files that can change an answer changes the answers' keys."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from tiny import CHAT, save_member, tiny_gpt2, tiny_llama, tiny_tokenizer
from transformers import AutoConfig, AutoTokenizer, ByT5Tokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from proxytune.errors import UserError
from proxytune.experiment.answers.keys import Keys
from proxytune.fusion.arm import Arm
from proxytune.models import Ensemble, FamilySpec, Member, Source, identity, load
from proxytune.models.loading.plain import Stated, has_plain_tokenizer, stated
from proxytune.models.loading.tokenizers import load_tokenizers
from proxytune.models.positions import window
from proxytune.models.vocabulary import tokenizer_state

TOKENIZER = tiny_tokenizer()
TOKENS = torch.tensor([[5, 6, 7, 8]])
DECIDING = [
    "added_tokens.json",
    "additional_chat_templates/tool_use.jinja",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "model.safetensors",
    "modeling_own.py",
    "preprocessor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "a file that nobody knows",
]
"""Read by transformers, by some class of tokenizer, by code that comes with the model, or perhaps by something new."""
IDLE = [
    ".gitattributes",
    "LICENSE",
    "README.md",
    "optimizer.pt",
    "pytorch_model.bin",
    "recipe.json",
    "trainer_state.json",
]


@pytest.fixture
def folder(tmp_path) -> Path:
    save_member(tmp_path / "model", tiny_llama(len(TOKENIZER), seed=1), TOKENIZER)
    for name in (*DECIDING, *IDLE):
        file = tmp_path / "model" / name
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            file.write_text("{}\n" if name.endswith(".json") else "text\n")
    return tmp_path / "model"


def edit(file: Path) -> None:
    with file.open("ab") as stream:
        stream.write(b"\n" if file.suffix == ".json" else b"x")


def test_the_lists_are_all_the_files_of_the_folder(folder):
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert sorted(file.relative_to(folder).as_posix() for file in files) == sorted([*DECIDING, *IDLE])


@pytest.mark.parametrize("name", DECIDING)
def test_a_file_that_can_decide_is_part_of_the_identity(name, folder, tmp_path):
    before = identity(Source(folder))
    shutil.copytree(folder, tmp_path / "moved")
    assert identity(Source(tmp_path / "moved")) == before
    edit(folder / name)
    assert identity(Source(folder)) != before


@pytest.mark.parametrize("name", IDLE)
def test_a_file_that_cannot_decide_is_not_read(name, folder):
    def read() -> list:
        """All that answers come from."""
        member = load(FamilySpec(folder))["base"]
        assert member.tokenizer is not None
        logits = member.model(TOKENS).logits.tolist()
        settings = [member.model.config.to_dict(), member.model.generation_config.to_dict()]
        return [logits, settings, tokenizer_state(member.tokenizer), member.tokenizer.chat_template]

    before, answers = identity(Source(folder)), read()
    edit(folder / name)
    assert identity(Source(folder)) == before
    assert read() == answers


def test_an_adapters_files_and_the_leave_to_run_code_are_part_of_the_identity(adapter_folders):
    plain, adapter = adapter_folders["antiexpert"], adapter_folders["expert:math"]
    before = identity(Source(plain, adapter=adapter))
    edit(adapter / "adapter_config.json")
    assert identity(Source(plain, adapter=adapter)) != before
    assert identity(Source(plain, trust_remote_code=True)) != identity(Source(plain))


def changed(what: str) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with its tokens as they are, and one part of it changed."""
    tokenizer = tiny_tokenizer()
    backend = tokenizer.backend_tokenizer
    match what:
        case "decoder":
            backend.decoder = tokenizers.decoders.Sequence([backend.decoder, tokenizers.decoders.Strip(" ", 1, 0)])
        case "normaliser":
            backend.normalizer = tokenizers.normalizers.Lowercase()
        case "pre-tokeniser":
            backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
        case "post-processor":
            backend.post_processor = tokenizers.processors.TemplateProcessing(
                single="<s> $A", special_tokens=[("<s>", 1)]
            )
        case "end of sequence":
            tokenizer.eos_token = "<pad>"
        case "special token":
            tokenizer.add_special_tokens({"unk_token": "z"})
        case "spaces":
            tokenizer.clean_up_tokenization_spaces = True
    return tokenizer


PARTS = ["decoder", "normaliser", "pre-tokeniser", "post-processor", "end of sequence", "special token", "spaces"]


@pytest.mark.parametrize("what", PARTS)
def test_every_part_of_the_tokenizer_is_part_of_the_key(what):
    """Also where the base, whose tokenizer writes the text, is no member of the arm."""

    def key(tokenizer: PreTrainedTokenizerFast) -> str:
        size = len(TOKENIZER)
        members = {role: Member(role, tiny_gpt2(size, seed=1), size, identity="same") for role in ("base", "expert:a")}
        return Keys(Ensemble(members, tokenizer), [Arm("expert", base="expert:a")]).of_arm["expert"]

    assert key(changed(what)) != key(tiny_tokenizer())
    assert key(changed(what)) == key(changed(what))


def test_what_a_call_leaves_in_the_tokenizer_is_no_part_of_the_key():
    tokenizer = tiny_tokenizer()
    before = tokenizer_state(tokenizer)
    tokenizer(["a b c", "d"], padding=True, truncation=True, max_length=2)
    assert tokenizer.backend_tokenizer.padding is not None
    assert tokenizer_state(tokenizer) == before


def test_of_a_tokenizer_without_a_fast_backend_what_it_writes_is_part_of_the_key():
    one, same, other = (tokenizer_state(ByT5Tokenizer(extra_ids=number)) for number in (5, 5, 6))
    assert one == same != other
    assert (one["class"], one["special"]["eos_token"]) == ("ByT5Tokenizer", "</s>")
    assert json.loads(bytes.fromhex(other["added_tokens.json"]))["<extra_id_5>"] == 264


# --- the weights are read to the last tensor -----------------------------------------------------------------------


def rewritten(folder: Path, **settings: object) -> Source:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    return Source(folder)


def with_tensors(folder: Path, **tensors: torch.Tensor) -> Source:
    weights = load_file(folder / "model.safetensors")
    save_file(weights | tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return Source(folder)


def test_biases_under_a_config_that_denies_them_are_refused(folder):
    config = tiny_llama(len(TOKENIZER), seed=1).config
    config.attention_bias = True
    LlamaForCausalLM(config).save_pretrained(folder)
    load(FamilySpec(folder))
    with pytest.raises(UserError, match=r"base: '.*' holds 8 tensors, first '.*self_attn.k_proj.bias', for"):
        load(FamilySpec(rewritten(folder, attention_bias=False)))


def test_layers_beyond_the_configs_are_refused(folder):
    with pytest.raises(UserError, match=r"holds 9 tensors, first 'model.layers.1.input_layernorm.weight'"):
        load(FamilySpec(rewritten(folder, num_hidden_layers=1)))


def test_a_tensor_of_another_program_is_refused(folder):
    with pytest.raises(UserError, match=r"holds 1 tensors, first 'value_head.weight'"):
        load(FamilySpec(with_tensors(folder, **{"value_head.weight": torch.ones(3)})))


def test_buffers_of_older_releases_are_no_weights(folder, tmp_path):
    """transformers names them; the model computes them itself."""
    expected = load(FamilySpec(folder))["base"].model(TOKENS).logits
    older = with_tensors(folder, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    assert torch.equal(load(FamilySpec(older))["base"].model(TOKENS).logits, expected)
    gpt2 = save_member(tmp_path / "gpt2", tiny_gpt2(len(TOKENIZER), seed=1), TOKENIZER)
    load(
        FamilySpec(
            with_tensors(gpt2, **{f"transformer.h.0.attn.{name}": torch.ones(1) for name in ("bias", "masked_bias")})
        )
    )


def test_a_head_of_its_own_under_a_config_that_ties_it_is_used(folder):
    expected = load(FamilySpec(folder))["base"].model(TOKENS).logits
    found = load(FamilySpec(rewritten(folder, tie_word_embeddings=True)))["base"].model(TOKENS).logits
    torch.testing.assert_close(found, expected)


def test_the_template_of_the_folder_is_the_one_in_use(folder):
    (folder / "chat_template.jinja").write_text(CHAT.replace("<|", "<<"))
    member = load(FamilySpec(Source(folder, chat={})))["base"]  # type: ignore[arg-type]
    assert member.render is not None and member.render("Hi").startswith("<<user|>")


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_what_a_plain_llama_states_is_what_transformers_reads(dtype, folder):
    source, config = Source(str(folder), dtype=dtype), AutoConfig.from_pretrained(folder)
    assert stated(source) == Stated(window(config), config.dtype if dtype == "auto" else torch.bfloat16)
    assert has_plain_tokenizer(source)
    ours, theirs = load_tokenizers({"base": source})["base"], AutoTokenizer.from_pretrained(folder)
    assert type(ours) is type(theirs)
    assert tokenizer_state(ours) == tokenizer_state(theirs)
    assert str(ours) == str(theirs)


@pytest.mark.parametrize(
    "settings",
    [
        {"model_type": "mistral"},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
        {"rope_parameters": None},
        {"dtype": None},
        {"max_position_embeddings": None},
        {"quantization_config": {"quant_method": "fp8"}},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_of_any_other_model_transformers_is_asked(settings, folder):
    source = rewritten(folder, **settings)
    assert stated(source) is None and not has_plain_tokenizer(source)
