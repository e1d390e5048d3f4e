"""Tuning: what carries the loss, what is left out, what is written, and that a run takes it up again."""

from __future__ import annotations

import json

import pytest
import tiny
import torch

from proxytune.cli import main
from proxytune.errors import UserError
from proxytune.models import FamilySpec, Source, load
from proxytune.training import Tuning, tune
from proxytune.training.sft import encode

EXAMPLES = [("the cat sat", " on the mat"), ("a dog ran", " to a tree and the cat"), ("the tree", " sat")]


@pytest.fixture
def small():
    tokenizer = tiny.tiny_tokenizer()
    return tiny.tiny_llama(len(tokenizer), seed=3), tokenizer


def test_only_the_answer_and_its_end_carry_the_loss(small):
    _, tokenizer = small
    for row, (prompt, answer) in zip(encode(tokenizer, EXAMPLES, 100), EXAMPLES, strict=True):
        assert row["input_ids"] == [*tokenizer(prompt + answer)["input_ids"], tokenizer.eos_token_id]
        learnt = [token for token in row["labels"] if token != -100]
        assert tokenizer.decode(learnt[:-1]).strip() == answer.strip()
        assert learnt[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("prompt_loss", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("device_batch", [1, 3])
def test_first_loss_is_the_weighted_cross_entropy_of_the_step(small, tmp_path, prompt_loss, device_batch):
    model, tokenizer = small
    total = weights = 0.0
    with torch.no_grad():
        for prompt, answer in EXAMPLES:  # one at a time, without padding
            start = len(tokenizer(prompt)["input_ids"])
            tokens = [*tokenizer(prompt + answer)["input_ids"], tokenizer.eos_token_id]
            log_p = model(torch.tensor([tokens])).logits[0].double().log_softmax(-1)
            for position in range(1, len(tokens)):
                weight = 1.0 if position >= start else prompt_loss
                total -= weight * log_p[position - 1, tokens[position]].item()
                weights += weight
    how = Tuning(method="full", max_steps=1, batch=3, device_batch=device_batch, prompt_loss=prompt_loss)
    card = tune(model, tokenizer, EXAMPLES, tmp_path, how)
    assert card["final_loss"] == pytest.approx(total / weights, rel=1e-5)


def test_the_step_does_not_depend_on_what_it_is_divided_into(small, tmp_path):
    """Examples of unlike lengths: a mean of the passes' means would be another step."""
    states = []
    for device_batch in (1, 3):
        tokenizer = tiny.tiny_tokenizer()
        model = tiny.tiny_llama(len(tokenizer), seed=3)
        how = Tuning(
            method="full", max_steps=2, batch=3, device_batch=device_batch, prompt_loss=0.3, learning_rate=0.01
        )
        tune(model, tokenizer, EXAMPLES, tmp_path / str(device_batch), how)
        states.append(model.state_dict())
    untrained = tiny.tiny_llama(len(tiny.tiny_tokenizer()), seed=3).state_dict()
    for name, weight in states[0].items():
        torch.testing.assert_close(weight, states[1][name], rtol=1e-3, atol=1e-4)
    assert any((weight - untrained[name]).abs().max() > 1e-3 for name, weight in states[0].items())


def test_examples_that_do_not_fit_are_left_out_and_counted(small, tmp_path):
    model, tokenizer = small
    longest = max(len(row["input_ids"]) for row in encode(tokenizer, EXAMPLES, 100))
    short = Tuning(method="full", max_steps=1, batch=1, device_batch=1, max_length=longest - 1)
    card = tune(model, tokenizer, EXAMPLES, tmp_path, short)
    assert (card["examples"], card["examples_left_out"]) == (2, 1)
    assert json.loads((tmp_path / "recipe.json").read_text())["examples_left_out"] == 1
    with pytest.raises(UserError, match=r"none of the 3 training examples fits into 2 tokens .*training\.max_length"):
        encode(tokenizer, EXAMPLES, 2)


def test_an_adapter_switched_on_is_the_merged_model(small, tmp_path):
    model, tokenizer = small
    for folder in ("small", "gsm"):
        (tmp_path / folder).mkdir()
    model.save_pretrained(tmp_path / "small")
    tokenizer.save_pretrained(tmp_path / "small")
    recipe = Tuning(max_steps=3, batch=3, device_batch=3, learning_rate=0.05, lora_rank=4, lora_dropout=0.0)
    tune(model, tokenizer, EXAMPLES, tmp_path / "gsm", recipe)
    source = Source(str(tmp_path / "small"), adapter=str(tmp_path / "gsm"), dtype="float32")
    family = FamilySpec(base=str(tmp_path / "small"), antiexpert=str(tmp_path / "small"), experts={"gsm": source})
    expert = load(family)["expert:gsm"]
    tokens = torch.tensor([tokenizer("the cat sat on the")["input_ids"]])
    switched = expert.read(expert.start(1), tokens)[0, -1]
    plain = load(family)["base"]
    untouched = plain.read(plain.start(1), tokens)[0, -1]
    merged = expert.model.merge_and_unload()(tokens).logits[0, -1, : len(switched)]
    torch.testing.assert_close(switched, merged, rtol=1e-4, atol=1e-4)
    assert (switched - untouched).abs().max() > 0.1, "the adapter learnt nothing"


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_the_prompt_weight_is_a_finite_number_from_0(weight):
    with pytest.raises(ValueError, match=r"training\.prompt_loss is"):
        Tuning(prompt_loss=weight)


def test_batch_must_be_whole_device_batches():
    with pytest.raises(ValueError, match=r"training\.device_batch is 3; it must divide training\.batch \(4\)"):
        Tuning(batch=4, device_batch=3)


def test_the_command_trains_what_a_run_can_take_up(tmp_path, capsys):
    small = tmp_path / "small"
    tokenizer = tiny.tiny_tokenizer()
    tiny.tiny_llama(len(tokenizer), seed=3).save_pretrained(small)
    tokenizer.save_pretrained(small)
    data = tmp_path / "data" / "gsm8k"
    data.mkdir(parents=True)
    row = json.dumps({"question": "the cat sat on 1 mat and 2 mats?", "answer": "1 and 2 is 3\n#### 3"})
    (data / "train.jsonl").write_text(f"{row}\n" * 2)
    (data / "test.jsonl").write_text(f"{row}\n")
    common = [f"models.base.path={small}", f"models.antiexpert.path={small}", "task=gsm8k"]
    common += [f"task.data_dir={tmp_path / 'data'}", "models=local"]
    trained = tmp_path / "trained"
    recipe = ["training.max_steps=1", "training.batch=2", "training.device_batch=2"]
    assert main(["train", *common, *recipe, "which=all", f"output={trained}"]) == 0
    assert "experts gsm8k: 1 steps" in capsys.readouterr().out
    for what in ("experts", "tuned"):
        assert (trained / what / "gsm8k" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (["models=local"], "models.antiexpert"),
        (["which=expert"], "which=expert is not allowed"),
        (["training.epochz=2"], "training.epochs"),
        (["training=liu2024_lara"], "liu2024_lora"),
        (["training.device_batch=3"], "must divide"),
    ],
)
def test_mistakes_take_one_line(bad, says, tmp_path, capsys):
    given = ["models=smollm2_selfcheck", f"models.base.path={tmp_path}", "task=gsm8k", f"output={tmp_path / 'out'}"]
    assert main(["train", *given, *bad]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert says in error
