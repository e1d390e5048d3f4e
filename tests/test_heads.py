"""A member's head gives what a linear layer gives, in the shapes and dtypes that it does not speed up too."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from proxytune.models import heads
from proxytune.models.heads import Head, use_fast_head


def head(bias: bool = False, dtype: torch.dtype = torch.float32) -> tuple[nn.Linear, nn.Linear]:
    """A linear layer, and a head with the same weights."""
    torch.manual_seed(0)
    plain = nn.Linear(24, 50, bias=bias, dtype=dtype).requires_grad_(False)
    fast = Head(24, 50, bias=bias, dtype=dtype).requires_grad_(False)
    fast.load_state_dict(plain.state_dict())
    return plain, fast


@pytest.fixture
def every_head_is_large_enough(monkeypatch):
    monkeypatch.setattr(heads, "SMALLEST", 0)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(24,), (1, 24), (1, 1, 24), (2, 1, 24), (2, 3, 24), (8, 24), (9, 24), (0, 24)])
@torch.no_grad()
def test_a_head_is_a_linear_layer(bias, shape, every_head_is_large_enough):
    plain, fast = head(bias)
    x = torch.randn(shape)
    torch.testing.assert_close(fast(x), plain(x), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_which_products_are_turned_round(monkeypatch):
    fast = head()[1]
    asked = []
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: asked.append(len(x)) or x)
    for rows in (1, 8, 9):
        fast(torch.randn(rows, 24))
    assert asked == [1, 8, 9]  # a small head
    asked.clear()
    monkeypatch.setattr(heads, "SMALLEST", 24 * 50)
    for rows in (1, 8, 9):
        fast(torch.randn(rows, 24))
    assert asked == [9]
    asked.clear()
    monkeypatch.setattr(heads, "LARGE", 24 * 50 - 1)
    for rows in (4, 5):
        fast(torch.randn(rows, 24))
    assert asked == [5]
    asked.clear()
    head(dtype=torch.bfloat16)[1](torch.randn(2, 24, dtype=torch.bfloat16))
    with torch.enable_grad():
        fast(torch.randn(3, 24))
    assert asked == [2, 3]


def test_a_model_keeps_its_weights_and_gradients(every_head_is_large_enough):
    config = LlamaConfig(
        vocab_size=60,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    tokens = torch.arange(6)[None]
    before, names = model(tokens).logits, list(model.state_dict())
    use_fast_head(model)
    assert type(model.lm_head) is Head
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert list(model.state_dict()) == names
    assert torch.equal(model(tokens).logits, before)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, before, rtol=1e-5, atol=1e-6)
