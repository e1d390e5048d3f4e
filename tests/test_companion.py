"""scripts/make_companion.py: what is dropped, what healing minimises, what is written."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from proxytune.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import make_companion

TOKENS = torch.tensor([[5, 6, 7, 8, 9, 10]])


def qwen2(vocab_size: int) -> Qwen2ForCausalLM:
    """Its config lists the kind of every layer."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=vocab_size, num_hidden_layers=4, **sizes)).eval()


@pytest.mark.parametrize("family", [lambda: tiny.tiny_llama(40, seed=3, layers=4), lambda: qwen2(40)])
def test_the_model_is_what_is_left_when_layers_add_nothing(family, tmp_path):
    expected, model = family(), family()
    with torch.no_grad():
        for i in (1, 2):
            expected.model.layers[i].self_attn.o_proj.weight.zero_()
            expected.model.layers[i].mlp.down_proj.weight.zero_()
        make_companion.drop_layers(model, [0, 3])
        model.save_pretrained(tmp_path)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert len(loaded.model.layers) == 2
        torch.testing.assert_close(loaded(TOKENS).logits, expected(TOKENS).logits)
        again = loaded.generate(TOKENS, max_new_tokens=5, do_sample=False, use_cache=True, eos_token_id=-1)
        plain = loaded.generate(TOKENS, max_new_tokens=5, do_sample=False, use_cache=False, eos_token_id=-1)
    assert again.equal(plain), "the caches of the layers that were kept are mixed up"


@pytest.mark.parametrize("keep", [[], [4], [-1]])
def test_layers_that_are_not_there_are_said(keep):
    with pytest.raises(UserError, match=r"keep=.*: give numbers of layers from 0 to 3"):
        make_companion.drop_layers(tiny.tiny_llama(40, seed=3, layers=4), keep)


@given(st.integers(1, 5), st.integers(2, 7), st.integers(1, 4), st.integers(0, 1000))
def test_the_gradient_is_that_of_the_divergence(n, vocab, rows, seed):
    torch.manual_seed(seed)
    target, logits = torch.randn(n, vocab), torch.randn(n, vocab, requires_grad=True)
    loss, gradient = make_companion.divergence(target, logits.detach(), rows)
    expected = torch.nn.functional.kl_div(
        logits.double().log_softmax(-1), target.double().log_softmax(-1), reduction="batchmean", log_target=True
    )
    expected.backward()
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    torch.testing.assert_close(gradient, logits.grad, atol=1e-5, rtol=1e-4)


def test_a_companion_comes_closer_and_is_an_ordinary_folder(tmp_path, capsys):
    tokenizer = tiny.tiny_tokenizer()
    base = tiny.save_member(tmp_path / "base", tiny.tiny_llama(len(tokenizer), seed=3, layers=4), tokenizer)
    row = {"question": "the cat sat on a mat", "answer": "and the dog ran", "article": "a tree", "highlights": "a cat"}
    for name in make_companion.OmegaConf.load(make_companion.RECIPE).text:
        file = tmp_path / "data" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(20 * (json.dumps(row) + "\n"))
    given = [f"base={base}", f"data={tmp_path / 'data'}", f"output={tmp_path / 'companion'}", "keep=[0,3]"]
    make_companion.main([*given, "window=16", "steps=40", "warmup=2", "learning_rate=0.003", "held_out=0.05"])
    card = json.loads((tmp_path / "companion" / "companion.json").read_text())
    found = card["held_out_perplexity"]
    assert found["companion"] < found["layers dropped"]
    assert card["tokens_seen"] == 40 * 4 * 16
    assert card["parameters"]["companion"] < card["parameters"]["base"]
    companion = AutoModelForCausalLM.from_pretrained(tmp_path / "companion")
    assert sum(weight.numel() for weight in companion.parameters()) == card["parameters"]["companion"]
    assert AutoTokenizer.from_pretrained(tmp_path / "companion").get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "no value for base, data, output"),
        (["steeps=1"], "the keys are base, data, output, keep"),
    ],
)
def test_mistakes_are_said_before_anything_loads(given, says):
    with pytest.raises(UserError, match=says):
        make_companion.main(given)
