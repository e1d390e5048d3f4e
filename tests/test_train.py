"""Tuning: what carries the loss, what is left out, what is written, and that a run takes it up again."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import tiny
import torch
from gguf import GGUFWriter
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from trl.trainer import add_fused_lm_head

from proxytune.cli import main
from proxytune.errors import UserError
from proxytune.folders import config_dir
from proxytune.models import FamilySpec, Source, load
from proxytune.models.loading import memory
from proxytune.training import Recipe, Tuning, sft, trainer
from proxytune.training.examples import StepSampler, encode
from proxytune.training.sft import tune

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


@pytest.mark.parametrize("family", [tiny.tiny_llama, tiny.tiny_gpt2])
def test_the_head_of_cpus_gives_the_loss_and_gradient_of_the_head_of_gpus(family):
    model = family(40, seed=3)
    add_fused_lm_head(model)
    tokens = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 0, 0]])
    labels = torch.tensor([[-100, -100, 7, -100, 9, 10], [-100, -100, -100, 14, -100, -100]])
    inputs = {"input_ids": tokens, "labels": labels, "attention_mask": (tokens > 0).long()}
    weights, found = torch.rand(2, 5), {}
    for log_probs in (trainer.plain_log_probs, trainer.fused_log_probs):
        model.zero_grad()
        values = log_probs(model, dict(inputs))
        (values * weights).sum().backward()
        found[log_probs] = [values, *(parameter.grad for parameter in model.parameters())]
    for plain, fused in zip(*found.values(), strict=True):
        torch.testing.assert_close(plain, fused, rtol=1e-4, atol=1e-5)
    assert (found[trainer.plain_log_probs][0] != 0).equal(labels[:, 1:] != -100)


def test_a_step_has_random_examples_the_longest_first():
    lengths = [int(n) for n in torch.randint(1, 50, (23,), generator=torch.Generator().manual_seed(0))]
    orders = []
    for epoch in (0, 1):
        sampler = StepSampler(lengths, 5, 4, seed=3, epochs_done=lambda done=epoch: done + 0.3)
        order = list(sampler)
        assert len(sampler) == len(order) == 24, "not whole passes"
        assert order.pop() == 23, "no filler"
        assert sorted(order) == list(range(23))
        for start in range(0, 23, 5):
            step = [lengths[i] for i in order[start : start + 5]]
            assert step == sorted(step, reverse=True)
        orders.append({frozenset(order[start : start + 5]) for start in range(0, 23, 5)})
    assert not orders[0] & orders[1], "an epoch has the steps of another"


@pytest.mark.parametrize("family", [tiny.tiny_llama, tiny.tiny_gpt2])
@pytest.mark.parametrize("examples", [EXAMPLES, EXAMPLES[:2]], ids=["full", "filled up"])
def test_a_step_is_the_same_however_it_is_done(family, examples, tmp_path):
    """Examples of unlike lengths: a mean of the passes' means would be another step."""
    tokenizer = tiny.tiny_tokenizer()
    # Logits, because Adam makes steps of the rounding in gradients that are 0, as those of GPT-2's key biases are.
    read = torch.tensor([tokenizer("the cat sat on a tree")["input_ids"]])
    said, cards = [family(len(tokenizer), seed=3)(read).logits], []
    for how in (
        {"device_batch": 1},
        {"device_batch": 3},
        {"device_batch": 3, "packing": True},
        {"device_batch": 3, "gradient_checkpointing": True},
    ):
        model = family(len(tokenizer), seed=3)
        tuning = Tuning(method="full", max_steps=2, batch=3, prompt_loss=0.3, learning_rate=0.01, **how)
        cards.append(tune(model, tokenizer, examples, tmp_path / str(len(said)), tuning))
        said.append(model.eval()(read).logits)
    untrained, first, *others = said
    assert (first - untrained).abs().max() > 0.1
    for other in others:
        torch.testing.assert_close(first, other, rtol=1e-3, atol=1e-3)
    assert len({(card["recipe"], card["tokens"]) for card in cards}) == 1
    assert cards[0]["tokens"] == 2 * sum(len(row["input_ids"]) for row in encode(tokenizer, examples, 100))


def test_a_model_that_mixes_packed_examples_is_refused(small, tmp_path):
    model, tokenizer = small
    forward = model.forward
    model.forward = lambda *args, position_ids=None, **kwargs: forward(*args, **kwargs)
    with pytest.raises(UserError, match=r"training\.packing=true: the attention of this model mixes packed examples"):
        tune(model, tokenizer, EXAMPLES, tmp_path, Tuning(batch=3, device_batch=3, packing=True))


def test_packing_is_checked_as_it_is_trained(small, tmp_path):
    """Flash attention reads 16 bits alone."""
    model, tokenizer = small
    forward, asked = model.forward, []

    def in_16_bits(*args: object, **kwargs: object) -> object:
        asked.append(torch.is_autocast_enabled("cpu"))
        return forward(*args, **kwargs)

    model.forward = in_16_bits
    trainer.make_trainer(model, tokenizer, encode(tokenizer, EXAMPLES, 100), tmp_path, Tuning(bf16=True, packing=True))
    assert asked == [True, True]


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_full_tuning_is_in_float32_and_rounded_once(stored, tmp_path):
    """Against the same training of the same numbers stored in float32; steps of 1e-4 vanish in 16 bits."""
    tokenizer, states = tiny.tiny_tokenizer(), {}
    how = Tuning(method="full", max_steps=3, batch=3, device_batch=3, learning_rate=1e-4)
    for dtype in (torch.float32, stored):
        model = tiny.tiny_llama(len(tokenizer), seed=3).to(stored).to(dtype)
        start = {name: weight.clone() for name, weight in model.state_dict().items()}
        folder = tmp_path / str(dtype)
        tune(model, tokenizer, EXAMPLES, folder, how)
        loaded = AutoModelForCausalLM.from_pretrained(folder)
        assert loaded.dtype == dtype
        assert len(list(folder.glob("*.safetensors"))) == 1
        states[dtype] = loaded.state_dict()
    for name, weight in states[torch.float32].items():
        assert torch.equal(weight.to(stored), states[stored][name])
    assert any((weight - start[name].float()).abs().max() > 1e-4 for name, weight in states[torch.float32].items())


def test_an_answer_needs_an_end(small, tmp_path):
    model, tokenizer = small
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="the tokenizer has no end-of-sequence token"):
        tune(model, tokenizer, EXAMPLES, tmp_path, Tuning())


PAPERS = {
    # Liu et al. 2024, appendix A; Fan et al. 2024, section 4.1 (alpha, dropout, warm-up and length are Liu's).
    "liu2024": {"num_train_epochs": 2, "learning_rate": 2e-5, "bf16": True},
    "liu2024_lora": {"num_train_epochs": 2, "learning_rate": 1e-4, "lora": (64, 16, 0.1)},
    "fan2024": {"num_train_epochs": 3, "learning_rate": 2e-5},
    "fan2024_lora": {"num_train_epochs": 3, "learning_rate": 1e-4, "lora": (64, 16, 0.1)},
}


@pytest.mark.parametrize(("name", "expected"), PAPERS.items())
def test_the_recipes_of_the_papers_reach_the_trainer(small, name, expected, tmp_path):
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir())):
        tuning = instantiate(compose("train", overrides=["models=local", "task=gsm8k", f"training={name}"]).training)
    model, tokenizer = small
    made = trainer.make_trainer(model, tokenizer, encode(tokenizer, EXAMPLES, 100), tmp_path, tuning)
    arguments = made.args
    expected = expected | {"weight_decay": 0.0, "warmup_steps": 0.04, "max_steps": -1}
    lora = expected.pop("lora", None)
    for key, value in expected.items():
        assert getattr(arguments, key) == value, key
    assert arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps == 128
    assert arguments.bf16 == expected.get("bf16", False)
    assert arguments.optim.startswith("adamw")
    assert tuning.max_length == 2048
    assert tuning.prompt_loss == 0
    assert isinstance(made.model, PeftModel) == (lora is not None)
    if lora is not None:
        config = made.model.peft_config["default"]
        assert (config.r, config.lora_alpha, config.lora_dropout) == lora


def test_the_learning_rate_rises_and_falls(small, tmp_path):
    model, tokenizer = small
    how = Tuning(
        max_steps=10, batch=1, device_batch=1, warmup_ratio=0.4, learning_rate=0.1, gradient_checkpointing=True
    )
    made = trainer.make_trainer(model, tokenizer, encode(tokenizer, EXAMPLES, 100), tmp_path, how)
    made.train()
    assert made.model.get_base_model().is_gradient_checkpointing
    rates = [row["learning_rate"] for row in made.state.log_history if "learning_rate" in row]
    assert rates == pytest.approx([0.1 * min(step / 4, (10 - step) / 6) for step in range(10)])


def test_examples_that_do_not_fit_are_left_out_and_counted(small, tmp_path):
    model, tokenizer = small
    longest = max(len(row["input_ids"]) for row in encode(tokenizer, EXAMPLES, 100))
    short = Tuning(method="full", max_steps=1, batch=1, device_batch=1, max_length=longest - 1)
    card = tune(model, tokenizer, EXAMPLES, tmp_path, short)
    assert (card["examples"], card["examples_left_out"]) == (2, 1)
    assert json.loads((tmp_path / "recipe.json").read_text())["examples_left_out"] == 1
    with pytest.raises(UserError, match=r"none of the 3 training examples fits into 2 tokens .*training\.max_length"):
        encode(tokenizer, EXAMPLES, 2)


def test_the_window_of_the_model_is_a_limit_too(tmp_path):
    tokenizer = tiny.tiny_tokenizer()
    model = tiny.tiny_gpt2(len(tokenizer), seed=3)  # learned positions: it cannot read on
    long = ("the cat", " sat on the mat" * tiny.WINDOW)
    how = Tuning(method="full", max_steps=1, batch=1, device_batch=1)
    card = tune(model, tokenizer, [*EXAMPLES, long], tmp_path, how)
    assert (card["examples"], card["examples_left_out"]) == (3, 1)
    assert "1 left out" in (tmp_path / "README.md").read_text()


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
    with pytest.raises(UserError, match=r"training\.prompt_loss=.* is not allowed: it is a number from 0"):
        Tuning(prompt_loss=weight)


def test_batch_must_be_whole_device_batches():
    with pytest.raises(UserError, match=r"training: device_batch=3 must divide batch=4"):
        Tuning(batch=4, device_batch=3)


def test_the_batch_is_kept_on_any_number_of_devices():
    tuning = Tuning(batch=128, device_batch=4)
    assert [tuning.accumulation(processes) for processes in (1, 2, 8, 32)] == [32, 16, 4, 1]
    with pytest.raises(
        UserError, match=r"training\.batch=128 cannot be divided among 3 processes with .*device_batch=4"
    ):
        tuning.accumulation(3)


@pytest.fixture
def command(tmp_path) -> list[str]:
    """A family of one small model, training data of two tasks, a recipe of one step."""
    small = tmp_path / "small"
    tokenizer = tiny.tiny_tokenizer()
    tiny.tiny_llama(len(tokenizer), seed=3).save_pretrained(small)
    tokenizer.save_pretrained(small)
    rows = {
        "gsm8k/train": {"question": "the cat sat on 1 mat and 2 mats?", "answer": "1 and 2 is 3\n#### 3"},
        "triviaqa/rc.nocontext_train": {"question": "who sat?", "answer": {"value": "the cat", "aliases": ["the cat"]}},
    }
    for name, row in rows.items():
        file = tmp_path / "data" / f"{name}.jsonl"
        file.parent.mkdir(parents=True)
        file.write_text(f"{json.dumps(row)}\n" * 2)
    return [
        *("train", "models=local", f"models.base.path={small}", f"models.antiexpert.path={small}", "task=gsm8k"),
        *(f"task.data_dir={tmp_path / 'data'}", f"output={tmp_path / 'trained'}"),
        *("training.max_steps=1", "training.batch=2", "training.device_batch=2"),
    ]


def card_in(folder) -> dict:
    return json.loads((folder / "recipe.json").read_text())


@pytest.mark.parametrize("training", ["lora", "full"])
def test_the_command_trains_what_a_run_takes_up(command, training, tmp_path, capsys):
    assert main([*command, f"training={training}", "which=all"]) == 0
    said, log = capsys.readouterr()
    assert (said + log).count("training.max_steps=1 decides: training.epochs has no effect") == 1  # of two models
    cards = {what: card_in(tmp_path / "trained" / what / "gsm8k") for what in ("experts", "tuned")}
    assert "experts gsm8k: trained, 1 steps of 2 on 2 examples" in said
    assert cards["experts"]["libraries"]["trl"]
    assert cards["experts"]["tokens"] > 0
    assert "base_model" in (tmp_path / "trained" / "tuned" / "gsm8k" / "README.md").read_text()
    overrides = said.splitlines()[-1].removeprefix("for proxytune run: ").split()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir())):
        models = compose("run", overrides=[*command[1:5], *overrides]).models
    family = FamilySpec.of(OmegaConf.to_container(models))
    given = FamilySpec(family.base, family.antiexpert, {"gsm8k": given_source(tmp_path, training)})
    answers = [load(spec, ["expert:gsm8k"])["expert:gsm8k"].identity for spec in (family, given)]
    assert answers[0] == answers[1]

    assert main([*command, f"training={training}", "which=all"]) == 0
    assert "experts gsm8k: already trained" in capsys.readouterr().out
    assert card_in(tmp_path / "trained" / "tuned" / "gsm8k") == cards["tuned"]
    assert main([*command, f"training={training}", "which=all", "training.learning_rate=0.3"]) == 1
    assert "training.learning_rate was" in capsys.readouterr().err


def given_source(tmp_path, training: str) -> Source:
    """The trained expert by its path."""
    folder = str(tmp_path / "trained" / "experts" / "gsm8k")
    return Source(folder) if training == "full" else Source(str(tmp_path / "small"), adapter=folder)


def test_members_may_refer_to_each_other(command, tmp_path):
    """Those that are not trained need no value of their own."""
    given = [*command, "+models.base.dtype=float32", "+models.antiexpert.dtype=${models.base.dtype}"]
    assert main([*given, "models.base.path=???"]) == 0
    recipe = card_in(tmp_path / "trained" / "experts" / "gsm8k")
    assert recipe["start"].endswith("dtype=float32")


def test_what_has_no_effect_on_other_models_is_refused(command, capsys):
    assert main([*command, "+miniature.seed=1"]) == 1
    assert "unknown key 'miniature'" in capsys.readouterr().err


def test_one_model_for_all_tasks(command, tmp_path, capsys):
    assert main([*command, "task.names=[gsm8k,triviaqa]", "training=multitask"]) == 0
    card = card_in(tmp_path / "trained" / "experts" / "multitask")
    assert card["examples"] == 4
    assert card["tuning"]["method"] == "full"
    assert "++models.experts.multitask.path=trained:" in capsys.readouterr().out


def test_lm_eval_keeps_quiet_about_training(command, capfd):
    assert main(command) == 0
    assert "kwargs" not in "".join(capfd.readouterr())


def test_a_trained_model_that_cannot_be_found_is_said(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PROXYTUNE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"unknown trained model 'abc'\. Known: none"):
        Source("trained:abc")
    assert main([*command, "which=all"]) == 0
    one, other = (card_in(tmp_path / "trained" / what / "gsm8k")["recipe"] for what in ("experts", "tuned"))
    assert one == other, "the family's two models are one"
    found = Source(f"trained:{one[:6]}")
    assert found.adapter is not None
    with pytest.raises(UserError, match="adapter='x' has no effect"):
        Source(f"trained:{one}", adapter="x")
    (tmp_path / "cache" / "trained" / f"{one[:-1]}x.json").write_text("{}")
    with pytest.raises(UserError, match=rf"trained:{one[:6]} is ambiguous: {one[:-1]}"):
        Source(f"trained:{one[:6]}")
    with pytest.raises(UserError, match="is damaged"):
        Source(f"trained:{one[:-1]}x")
    (tmp_path / "trained").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"was in .*gsm8k, which holds it no longer"):
        Source(f"trained:{one}")


def test_a_model_keeps_the_hash_that_it_was_trained_under(command, tmp_path, capsys, monkeypatch):
    """An earlier version may have hashed the same recipe otherwise."""
    monkeypatch.setenv("PROXYTUNE_CACHE", str(tmp_path / "cache"))
    assert main(command) == 0
    note = tmp_path / "trained" / "experts" / "gsm8k" / "recipe.json"
    note.write_text(json.dumps(card_in(note.parent) | {"recipe": "0123456789abcdef"}))
    capsys.readouterr()
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "already trained" in said and "++models.experts.gsm8k.path=trained:0123456789abcdef" in said
    assert Source("trained:0123456789abcdef").adapter == str(note.parent)


def test_whole_numbers_and_floats_are_one_recipe():
    assert Recipe(Tuning(epochs=2), EXAMPLES).hash == Recipe(Tuning(epochs=2.0), EXAMPLES).hash


@pytest.mark.parametrize("training", ["lora", "full"])
def test_what_is_printed_fits_a_family_that_waits_for_adapters(command, training, tmp_path, capsys):
    """Whose experts have the adapter ??? until they are trained."""
    models = command[2:4] + [f"models.{role}.dtype=float32" for role in ("base", "antiexpert")]
    given = [command[0], "models=smollm2_transfer", *models, *command[4:]]
    assert main([*given, f"training={training}", "training.bf16=false", "which=all"]) == 0
    overrides = capsys.readouterr().out.splitlines()[-1].removeprefix("for proxytune run: ").split()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir())):
        node = compose("run", overrides=["models=smollm2_transfer", *models, *overrides, "task=gsm8k"]).models
    for what, role in (("experts", "antiexpert"), ("tuned", "base")):
        source = Source.of(OmegaConf.to_container(node[what].gsm8k, resolve=True))
        assert (source.adapter is None) == (training == "full")
        assert (source.module == Source.of(OmegaConf.to_container(node[role])).module) == (training == "lora")


def test_the_miniature_is_a_family_to_train_and_to_merge(tmp_path, capsys):
    given = ["models=miniature", "miniature=tiny"]
    task = ["task=miniature", "task.names=[miniature_trivia]"]
    once = ["training.max_steps=1", "training.batch=2", "training.device_batch=2", f"output={tmp_path / 'trained'}"]
    assert main(["train", *given, "task=gsm8k", *once]) == 1
    assert "these models bring their own data, in " in capsys.readouterr().err
    assert main(["train", *given, *task, *once, "which=all"]) == 0
    overrides = capsys.readouterr().out.splitlines()[-1].removeprefix("for proxytune run: ").split()
    [brought] = [override for override in overrides if override.startswith("task.data_dir=")]
    copied = shutil.copytree(brought.partition("=")[2], tmp_path / "data")
    assert main(["train", *given, *task, *once, "which=all", f"task.data_dir={copied}"]) == 0
    said = capsys.readouterr().out
    assert "experts trivia: already trained" in said
    assert f" task.data_dir={copied} " in said

    where = [f"output={tmp_path / 'run'}", f"store={tmp_path / 'store.sqlite'}"]
    assert main(["run", *overrides, *task, "only=[base,expert,tuned,proxy]", "limit=2", *where]) == 0
    members = json.loads((tmp_path / "run" / "results.json").read_text())["provenance"]["members"]
    assert "adapter" in str(members["expert:trivia"])
    capsys.readouterr()

    assert main(["merge", *given, "scale=0.4", "experts=[gsm,trivia]", f"output={tmp_path / 'merged'}"]) == 0
    overrides = capsys.readouterr().out.splitlines()[-1].removeprefix("for proxytune run: ").split()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir())):
        models = compose("run", overrides=[*overrides, "task=miniature"]).models
    assert Source.of(models.experts.task_arithmetic.path).path == str(tmp_path / "merged")
    assert main(["merge", *given, "scale=0.4", "experts=[gsm,trivial]", f"output={tmp_path / 'other'}"]) == 1
    assert "unknown expert in experts 'trivial'. Did you mean 'trivia'?" in capsys.readouterr().err


def test_a_trained_adapter_is_loaded_in_the_number_type_of_its_training(command, tmp_path, capsys):
    assert main([*command, "+models.antiexpert.dtype=float32"]) == 0
    recipe = card_in(tmp_path / "trained" / "experts" / "gsm8k")["recipe"]
    assert Source(f"trained:{recipe}").module == Source(str(tmp_path / "small"), dtype="float32").module
    assert Source(f"trained:{recipe}", dtype="bfloat16").dtype == "bfloat16"


def test_out_of_memory_says_what_helps(command, monkeypatch, capsys):
    def fail(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "plain_log_probs", fail)
        patch.setattr(trainer, "fused_log_probs", fail)
        assert main(command) == 1
    assert "experts gsm8k: out of memory with training.device_batch=2; re-run the same command with a smaller" in (
        capsys.readouterr().err
    )
    assert main([*command, "training.device_batch=1", "training.gradient_checkpointing=true"]) == 0


@pytest.mark.parametrize("role", ["base", "antiexpert"])
def test_full_tuning_of_16_bits_needs_the_memory_of_float32(family_folders, role, monkeypatch):
    half = Source(str(family_folders[role]), dtype="bfloat16")
    needed = 4 * memory.weight_bytes(Source(half.path, dtype="float32"))
    monkeypatch.setattr(memory, "_available", lambda device: needed)
    memory.check_training_memory(role, half, None)
    monkeypatch.setattr(memory, "_available", lambda device: needed - 1)
    with pytest.raises(UserError, match=rf"{role}: training needs about"):
        memory.check_training_memory(role, half, None)


def test_the_adapter_of_a_gguf_file_is_counted_too(monkeypatch, tmp_path):
    """A file as llama.cpp writes it: two layers of 32 and 40 wide, embedding and head, which LoRA leaves alone."""
    writer = GGUFWriter(str(tmp_path / "model.gguf"), "llama")
    shapes = {"token_embd": (50, 32), "output": (50, 32), "output_norm": (32,)}
    for layer in (0, 1):
        shapes |= {f"blk.{layer}.attn_output": (32, 32), f"blk.{layer}.ffn_up": (40, 32)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.zeros(shape, np.float32))
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    source = Source(str(tmp_path / "model.gguf"), dtype="float32")
    adapter = 4 * 3 * 2 * (64 + 72)
    needed = 4 * sum(math.prod(shape) for shape in shapes.values()) + 4 * adapter
    monkeypatch.setattr(memory, "_available", lambda device: needed)
    memory.check_training_memory("base", source, 3)
    monkeypatch.setattr(memory, "_available", lambda device: needed - 1)
    with pytest.raises(UserError, match="base: training needs about"):
        memory.check_training_memory("base", source, 3)


@pytest.mark.parametrize("role", ["base", "antiexpert"])
def test_the_memory_that_training_needs_is_estimated(family_folders, role, monkeypatch):
    source = Source(str(family_folders[role]))
    model = AutoModelForCausalLM.from_pretrained(source.path)
    full = 4 * model.num_parameters()
    peft = get_peft_model(model, LoraConfig(r=3, target_modules="all-linear"))
    adapter = 4 * peft.get_nb_trainable_parameters()[0]
    for rank, needed in ((None, 4 * full), (3, full + 4 * adapter)):
        monkeypatch.setattr(memory, "_available", lambda device, needed=needed: needed)
        memory.check_training_memory(role, source, rank)
        monkeypatch.setattr(memory, "_available", lambda device, needed=needed: needed - 1)
        with pytest.raises(UserError, match=rf"{role}: training needs about .* on cpu"):
            memory.check_training_memory(role, source, rank)


def test_a_tuned_model_that_does_not_fit_is_refused_before_the_experts_are_trained(
    command, family_folders, tmp_path, monkeypatch, capsys
):
    large = family_folders["base"]
    sizes = [memory.weight_bytes(Source(str(path))) for path in (tmp_path / "small", large)]
    monkeypatch.setattr(memory, "_available", lambda device: 4 * sum(sizes) // 2)
    given = [*command, f"models.base.path={large}", "training=full", "which=all"]
    assert main(given) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "tuned: training needs" in error
    assert not (tmp_path / "trained" / "experts").exists()
    assert main([*given, "which=experts"]) == 0


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (["models.antiexpert=null"], "models.antiexpert is missing"),
        (["models.antiexpert.path=???"], "models.antiexpert.path has no value yet"),
        (["models.antiexpert.path=/no/such/folder"], "antiexpert: no such folder: '/no/such/folder'"),
        (["models.antiexpert.path=trained:nothing"], "unknown trained model 'nothing'"),
        (
            ["which=expert"],
            "which='expert' is not allowed: it is experts (over the antiexpert), tuned (over the base) or",
        ),
        (["multitask=2"], "multitask=2 is not allowed"),
        (["training.epochz=2"], "training.epochs"),
        (["training=liu2024_lara"], "liu2024_lora"),
        (["training.device_batch=3"], "training: device_batch=3 must divide batch=2"),
        (["training.device_batch=4"], "must divide batch=2: give training.device_batch=2"),
        (["training.batch=9", "training.device_batch=6"], "must divide batch=9: give training.device_batch=3"),
        (["training.prompt_loss=-1"], "training.prompt_loss=-1 is not allowed: it is a number from 0"),
        (["training.learning_rate=nan"], "training.learning_rate=nan is not allowed"),
        (
            ["training.checkpoint_steps=0"],
            "training.checkpoint_steps=0 is not allowed: it is an integer from 1, or",
        ),
        (["training.bf16=no"], "training.bf16='no' is not allowed: it is true or false"),
        (["training.packing=1"], "training.packing=1 is not allowed: it is true or false"),
        (["training.max_steps=1.5"], "training.max_steps=1.5 is not allowed: it is an integer from 1, or null"),
        (["training.max_length=many"], "training.max_length='many' is not allowed: it is an integer from 1"),
        (["training.lora_rank=true"], "training.lora_rank=true is not allowed: it is an integer from 1"),
        (["training.learning_rate=fast"], "training.learning_rate='fast' is not allowed: it is a number above 0"),
        (["training.seed=-1"], "training.seed=-1 is not allowed: it is an integer from 0"),
        (["training.max_steps=null", "training.epochs=null"], "training: epochs and max_steps are null"),
        (["+models.base.chat={}", "which=all"], "models.base.chat has no effect"),
        (["+models.antiexpert.chat={}"], "models.antiexpert.chat has no effect"),
        (["training.max_length=4"], "none of the 2 training examples fits into 4 tokens"),
        (["task.names=[truthfulqa_mc]"], "no training split"),
        (["task.names=[gsm8k]", "task.data_dir=/no/such/folder"], "no folder /no/such/folder"),
        (["task.names=[gsm9k]"], "gsm8k"),
    ],
)
def test_mistakes_take_one_line(command, bad, says, capsys, tmp_path):
    assert main([*command, *bad]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert says in error
    assert not (tmp_path / "trained" / "experts").exists()


def test_two_processes_end_where_one_does(command, tmp_path):
    """For real: gloo, each with its own share of every step. In the second step one has no example."""
    more = tmp_path / "data" / "gsm8k" / "train.jsonl"
    more.write_text(more.read_text() + json.dumps({"question": "the cat and the dog?", "answer": "2\n#### 2"}) + "\n")
    recipe = ["training=full", "training.bf16=false", "training.max_steps=2", "training.learning_rate=0.01"]
    recipe += ["task.names=[gsm8k,triviaqa]", "multitask=true", "training.prompt_loss=0.2", "training.batch=4"]
    given = [*command, *recipe, "training.device_batch=2"]
    assert main(given) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={tiny.free_port()}"]
    two = [*launch, "-m", "proxytune", *given, f"output={tmp_path / 'two'}"]
    subprocess.run(two, check=True, capture_output=True, timeout=300)
    folders = [tmp_path / name / "experts" / "multitask" for name in ("trained", "two")]
    cards = [card_in(folder) for folder in folders]
    assert [card["processes"] for card in cards] == [1, 2]
    assert [(card["steps"], card["examples"]) for card in cards] == [(2, 5), (2, 5)]
    assert cards[0]["tokens"] == cards[1]["tokens"]
    assert cards[0]["final_loss"] == pytest.approx(cards[1]["final_loss"], rel=1e-5)
    states = [load_file(folder / "model.safetensors") for folder in folders]
    start = load_file(tmp_path / "small" / "model.safetensors")
    for name, weight in states[0].items():
        torch.testing.assert_close(weight, states[1][name], rtol=1e-3, atol=1e-4)
    assert any((states[0][name] - weight).abs().max() > 1e-3 for name, weight in start.items())


def test_every_step_is_reported_with_its_loss(small, tmp_path, monkeypatch):
    reports = []
    monkeypatch.setattr(sft, "progress_bars", lambda show: nullcontext(lambda *report: reports.append(report)))
    model, tokenizer = small
    how = Tuning(method="full", max_steps=3, batch=3, device_batch=3)
    card = tune(model, tokenizer, EXAMPLES, tmp_path / "gsm8k", how)
    assert [report[:3] for report in reports] == [("gsm8k", 1, 3), ("gsm8k", 2, 3), ("gsm8k", 3, 3)]
    assert reports[-1][3] == f"loss {card['final_loss']:.3f}"
