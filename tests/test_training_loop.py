"""The training loop of the miniature against independent computations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from proxytune.errors import UserError
from proxytune.training import loop
from proxytune.training.loop import Optimization, WeightedTokens, train, windows


def make_model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
            tie_word_embeddings=True, initializer_range=0.2,
        )
    )  # fmt: skip


EXAMPLES = [((1, 5, 6), (7, 8, 1)), ((1, 9), (3, 1)), ((1, 4, 4, 4, 2), (11, 1))]
"""Prompts and answers."""


def rows(examples: Sequence = EXAMPLES, prompt_loss: float = 0.0) -> list[WeightedTokens]:
    return [
        WeightedTokens(torch.tensor([*p, *a]), torch.tensor([prompt_loss] * len(p) + [1.0] * len(a)))
        for p, a in examples
    ]


def test_first_loss_of_finetuning_equals_the_model_s_own_on_masked_labels() -> None:
    model = make_model()
    expected, count = 0.0, 0
    with torch.no_grad():
        for prompt, answer in EXAMPLES:  # one by one, without padding
            tokens = torch.tensor([[*prompt, *answer]])
            labels = tokens.clone()
            labels[:, : len(prompt)] = -100
            expected += model(tokens, labels=labels).loss.item() * len(answer)
            count += len(answer)
    losses = train(model, rows(), Optimization(learning_rate=1e-3, batch=3, epochs=1), seed=0)
    assert losses == [pytest.approx(expected / count, rel=1e-5)]


def test_first_loss_of_pretraining_equals_the_model_s_own() -> None:
    model, stream = make_model(), torch.randint(0, 20, (17,), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        halves = [model(stream[None, i : i + 8]).logits.log_softmax(-1)[0] for i in (0, 8)]
        expected = (
            -sum(
                half[torch.arange(8), stream[i + 1 : i + 9]].mean().item()
                for i, half in zip((0, 8), halves, strict=True)
            )
            / 2
        )
    losses = train(model, windows(stream, 8), Optimization(learning_rate=1e-3, batch=2, epochs=1), seed=0)
    assert losses == [pytest.approx(expected, rel=1e-5)]


def test_windows_learn_every_token_once_and_leave_out_the_rest() -> None:
    stream = torch.arange(10)
    assert [row.tokens.tolist() for row in windows(stream, 4)] == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]]
    assert [row.weights.tolist() for row in windows(stream, 3)] == [[1, 1, 1, 1]] * 3


def test_padding_changes_no_gradient() -> None:
    def gradients(examples: Sequence) -> list[torch.Tensor]:
        model = make_model()
        loop._loss(model, rows(examples)).backward()
        return [weight.grad for weight in model.parameters()]

    short, long = (gradients(EXAMPLES[i : i + 1]) for i in (1, 2))
    for together, one, other in zip(gradients(EXAMPLES[1:]), short, long, strict=True):
        torch.testing.assert_close(together, (one + other) / 2)  # both have two weighted tokens


def test_first_loss_with_a_prompt_loss_is_the_weighted_mean_over_tokens() -> None:
    model, total, weights = make_model(), 0.0, 0.0
    with torch.no_grad():
        for prompt, answer in EXAMPLES:
            tokens = torch.tensor([*prompt, *answer])
            log_p = model(tokens[None]).logits[0].log_softmax(-1)
            for i in range(1, len(tokens)):
                weight = 1.0 if i >= len(prompt) else 0.3
                total, weights = total - weight * log_p[i - 1, tokens[i]].item(), weights + weight
    how = Optimization(learning_rate=1e-3, batch=3, epochs=1)
    assert train(model, rows(prompt_loss=0.3), how, seed=0) == [pytest.approx(total / weights, rel=1e-5)]


def test_training_learns_and_leaves_the_model_ready_to_answer() -> None:
    model = make_model()
    losses = train(model, rows(), Optimization(learning_rate=1e-2, batch=3, epochs=60), seed=0)
    assert losses[-1] < 0.05 < losses[0]
    assert not model.training
    for prompt, answer in EXAMPLES:
        tokens = torch.tensor([[*prompt, *answer]])
        greedy = model(tokens).logits[0, len(prompt) - 1 : -1].argmax(-1)
        assert greedy.tolist() == list(answer)


def test_equal_seeds_give_equal_weights_and_other_seeds_other_ones() -> None:
    def weights(seed: int) -> torch.Tensor:
        model = make_model()
        train(model, rows(), Optimization(learning_rate=1e-2, batch=1, epochs=3), seed=seed)
        return model.lm_head.weight

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_every_epoch_shows_every_example_once() -> None:
    model, seen = make_model(), []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.extend(row.tolist() for row in kwargs["input_ids"]), with_kwargs=True
    )
    examples = [((1, i), (i, 1)) for i in range(2, 9)]
    train(model, rows(examples), Optimization(learning_rate=1e-3, batch=2, epochs=4), seed=0)
    assert sorted(row[1] for row in seen) == sorted(list(range(2, 9)) * 4)
    assert sorted(row[1] for row in seen[:7]) == list(range(2, 9))


def test_progress_counts_to_the_end() -> None:
    calls: list[tuple[int, int]] = []
    how = Optimization(learning_rate=1e-3, batch=2, epochs=2)
    losses = train(make_model(), rows(), how, 0, lambda done, total: calls.append((done, total)))
    assert calls == [(i + 1, 3) for i in range(3)]
    assert len(losses) == 3


@given(warmup=st.integers(0, 30), steps=st.integers(1, 200), rate=st.floats(1e-5, 1e-1), final=st.floats(0, 1))
def test_the_rate_rises_in_warm_up_then_falls_to_its_final_share(
    warmup: int, steps: int, rate: float, final: float
) -> None:
    how = Optimization(learning_rate=rate, batch=1, epochs=1, warmup=warmup, final=final)
    rates = [how.rate(step, steps) for step in range(steps)]
    assert all(0 < r <= rate * (1 + 1e-9) or final == 0 for r in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    if steps > warmup:
        assert how.rate(steps, steps) == pytest.approx(rate * final, abs=1e-12)
        assert math.isclose(rates[warmup], rate, rel_tol=1e-9)


@pytest.mark.parametrize("field", ["learning_rate", "batch", "epochs"])
def test_values_that_train_nothing_are_refused(field: str) -> None:
    values = {"learning_rate": 1e-3, "batch": 2, "epochs": 1.0, field: 0}
    with pytest.raises(
        UserError, match=rf"optimization\.{field}=0 is not allowed: it is an? (number above 0|integer from 1)"
    ):
        Optimization(**values)
