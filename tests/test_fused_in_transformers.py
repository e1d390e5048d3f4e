"""FusedCausalLM in the hands of transformers, accelerate and peft: right, or refused in one line."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import accelerate
import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_finite_and_ends import Broken
from test_sources import in_hub_cache
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments, pipeline

from proxytune import FusedCausalLM, MatchKL, Static
from proxytune.errors import UserError
from proxytune.fusion import Rule
from proxytune.models import Ensemble
from proxytune.models.hf.config import FusedConfig

EXPERT = "expert:math"
TOKENS = torch.tensor([[5, 9, 200, 31, 77, 8], [101, 44, 12, 60, 61, 62]])
RULES = {"alone": None, "static": Static(1.0), "match_kl": MatchKL()}


@pytest.fixture(params=RULES)
def fused(family, request) -> FusedCausalLM:
    return made(family, RULES[request.param])


def made(family: Ensemble, rule: Rule | None = RULES["static"]) -> FusedCausalLM:
    """A model over modules of its own, which a test may change."""
    copied = {
        role: replace(family[role], model=deepcopy(family[role].model)) for role in ("base", EXPERT, "antiexpert")
    }
    return FusedCausalLM.from_ensemble(Ensemble(copied, family.tokenizer), rule, None if rule is None else [EXPERT])


def refused(call, message: str) -> None:
    with pytest.raises(UserError) as error:
        call()
    assert message in str(error.value) and "\n" not in str(error.value)


# --- training beside it, and not training it ---


def test_logits_can_be_edited_and_trained_on(fused):
    logits = fused(TOKENS).logits
    logits[..., 0] = -torch.inf
    head = torch.nn.Linear(logits.shape[-1], 3)
    whole = torch.nn.ModuleDict({"fused": fused, "head": head}).train()
    whole["head"](fused(TOKENS).logits).sum().backward()
    assert head.weight.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in fused.parameters())
    assert head.training and not any(module.training for module in fused.modules())


def test_trainer_evaluates_it(fused, tmp_path):
    rows = [{"input_ids": row.tolist(), "labels": row.tolist()} for row in (*TOKENS, *TOKENS.flip(1))]
    arguments = TrainingArguments(tmp_path, per_device_eval_batch_size=3, use_cpu=True, report_to=[])
    trainer = Trainer(fused, arguments, eval_dataset=rows)
    with torch.no_grad():
        losses = [fused(row[None], labels=row[None]).loss for row in (*TOKENS, *TOKENS.flip(1))]
    found = trainer.evaluate()["eval_loss"]
    assert found == pytest.approx(float(torch.stack(losses).mean()), abs=1e-4)
    predicted = trainer.predict(rows).predictions
    torch.testing.assert_close(torch.tensor(predicted[:2]), fused(TOKENS).logits, atol=1e-4, rtol=1e-4)
    trainer.save_model(str(tmp_path / "saved"))
    assert FusedCausalLM.from_pretrained(tmp_path / "saved")(TOKENS).logits.equal(fused(TOKENS).logits)


def test_it_is_not_trained(fused, family, tmp_path):
    untrained = "a FusedCausalLM only decodes and has no gradients: tune a member"
    refused(lambda: fused(TOKENS, labels=TOKENS).loss.backward(), untrained)
    with torch.no_grad():
        assert not fused(TOKENS, labels=TOKENS).loss.requires_grad
    arguments = TrainingArguments(tmp_path, use_cpu=True, report_to=[], max_steps=1)
    rows = [{"input_ids": row.tolist(), "labels": row.tolist()} for row in TOKENS]
    refused(lambda: Trainer(fused, arguments, train_dataset=rows).train(), untrained)
    adapted = get_peft_model(made(family), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    refused(lambda: adapted(TOKENS, labels=TOKENS).loss.backward(), untrained)
    refused(lambda: adapted.get_base_model().save_pretrained(tmp_path), "an adapter inside a plain model is not saved")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: m.generate_batch([[5, 9]], max_new_tokens=2),
            "continuous batching (generate_batch) pages the",
        ),
        (lambda m: m.init_continuous_batching(), "continuous batching (generate_batch) pages the"),
        (
            lambda m: m.generate(TOKENS[:1], assistant_early_exit=1),
            "assistant_early_exit drafts from the layers",
        ),
        (lambda m: m.add_adapter(LoraConfig()), "an adapter belongs to one member"),
        (lambda m: m.load_adapter("some/adapter"), "an adapter belongs to one member"),
        (lambda m: m.resize_token_embeddings(7), "resize their embeddings before fusing"),
    ],
)
def test_what_several_models_cannot_do_is_refused(call, message, family):
    refused(lambda: call(made(family)), message)


@pytest.mark.parametrize("how", ["cpu_offload", "disk_offload"])
def test_accelerate_may_keep_the_weights_elsewhere(how, fused, tmp_path):
    expected, answer = fused(TOKENS).logits, fused.generate(TOKENS, max_new_tokens=4)
    options = {"offload_dir": tmp_path} if how == "disk_offload" else {}
    getattr(accelerate, how)(fused, execution_device=torch.device("cpu"), **options)
    assert {weight.device.type for weight in fused.parameters()} == {"meta"}
    assert fused.device.type == "cpu"
    assert fused(TOKENS).logits.equal(expected)
    assert fused.generate(TOKENS, max_new_tokens=4).equal(answer)
    refused(lambda: fused.save_pretrained(tmp_path / "saved"), "base: its weights are offloaded")


# --- logits that are no answer ---


def damaged(family: Ensemble, role: str, value: float) -> Ensemble:
    """The family with `value` in one weight of the embedding of token 8: rows without it are sound."""
    model = deepcopy(family[role].model)
    with torch.no_grad():
        model.get_input_embeddings().weight[8] = value
    return Ensemble({**family.members, role: replace(family[role], model=model)}, family.tokenizer)


WAYS = {
    "greedy": {},
    "sampling": {"do_sample": True},
    "beams": {"num_beams": 3},
    "assisted": {"prompt_lookup_num_tokens": 2},
    "without a cache": {"use_cache": False},
    "invalid values removed": {"remove_invalid_values": True},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("role", ["base", EXPERT, "antiexpert"])
def test_nothing_is_generated_from_nan(way, role, family):
    model = FusedCausalLM.from_ensemble(damaged(family, role, float("nan")), Static(1.0), [EXPERT])
    rows = TOKENS[:1] if way == "assisted" else TOKENS.flip(0)
    row = 0 if way == "assisted" else 3 if way == "beams" else 1
    refused(
        lambda: model.generate(rows, max_new_tokens=4, **WAYS[way]),
        f"{role} gives NaN or infinite logits in row {row} of the batch: its weights are damaged, or overflow in",
    )


@pytest.mark.parametrize("rule", [None, Static(1.0), Static(0.0), MatchKL(), Broken(), Broken(torch.inf)], ids=str)
def test_nan_and_infinity_are_no_logits(rule, family):
    """In forward as well: the largest of NaNs is choice 0 to programs that score them."""
    experts = None if rule is None else [EXPERT]
    if isinstance(rule, Broken):
        model = FusedCausalLM.from_ensemble(family, rule, experts)
        refused(lambda: model(TOKENS), "Broken made NaN or infinite logits of the members' finite ones in row 0")
        return
    for value in (float("nan"), float("inf")):
        model = FusedCausalLM.from_ensemble(damaged(family, "base", value), rule, experts)
        assert model(TOKENS[1:]).logits.isfinite().all()
        refused(lambda model=model: model(TOKENS), "base gives NaN or infinite logits in row 0 of the batch")


def test_what_stands_in_the_padding_does_not_matter(family):
    model = made(family)

    def spoil(_module, _given, output) -> None:
        output.logits[:, 2:] = torch.nan

    model.ensemble["base"].model.register_forward_hook(spoil)
    mask = torch.tensor([[1, 1, 0, 0]])
    assert model(TOKENS[:1, :4], attention_mask=mask).logits[0].isfinite().any(dim=-1).tolist() == [1, 1, 0, 0]
    refused(lambda: model(TOKENS[:1, :4], attention_mask=mask.flip(1)), "base gives NaN or infinite logits in row 0")


def test_tokens_may_be_ruled_out(family):
    model = FusedCausalLM.from_ensemble(family, Broken(-torch.inf), [EXPERT])
    assert 3 not in model.generate(TOKENS, max_new_tokens=6)[:, TOKENS.shape[1] :]


# --- saving ---


def test_the_options_of_save_pretrained_are_taken_or_refused(family, tmp_path):
    model = made(family)
    model.save_pretrained(tmp_path / "other process", is_main_process=False)
    assert not list(tmp_path.iterdir())
    usual = {"state_dict": None, "push_to_hub": False, "safe_serialization": True, "variant": None, "token": None}
    model.save_pretrained(tmp_path / "saved", is_main_process=True, max_shard_size="10KB", **usual)
    assert len(list((tmp_path / "saved" / "base").glob("*.safetensors"))) > 1
    assert FusedCausalLM.from_pretrained(tmp_path / "saved")(TOKENS).logits.equal(model(TOKENS).logits)
    for options, message in (
        ({"state_dict": model.state_dict()}, "does not take state_dict: each member is saved with the weights"),
        ({"push_to_hub": True}, "does not take push_to_hub: call push_to_hub(repo_id) of the model"),
        ({"safe_serialization": False}, "does not take safe_serialization=False"),
        ({"variant": "fp16"}, "does not take variant='fp16'"),
        ({"max_shards": 3}, "does not take max_shards=3"),
    ):
        refused(lambda options=options: model.save_pretrained(tmp_path / "refused", **options), message)
    assert not (tmp_path / "refused").exists()


def test_push_to_hub_uploads_every_file(family, tmp_path, monkeypatch):
    class Hub:
        """What the hub is told."""

        def create_repo(self, repo_id, **_):
            return type("Repo", (), {"repo_id": repo_id})

        def create_commit(self, operations, **_):
            self.files = {operation.path_in_repo for operation in operations}

    class Card:
        def save(self, path):
            Path(path).write_text("card")

    hub, model = Hub(), made(family)
    monkeypatch.setattr("transformers.utils.hub.hf_api", lambda *_: hub)
    monkeypatch.setattr("transformers.utils.hub.create_and_tag_model_card", lambda *_, **__: Card())
    model.push_to_hub("someone/fused")
    model.save_pretrained(tmp_path)
    saved = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert hub.files == saved | {"README.md"}


def test_the_saved_config_says_which_dtype_the_weights_have(family, tmp_path):
    model = made(family).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert {member.dtype for member in FusedCausalLM.from_pretrained(tmp_path).members} == {torch.bfloat16}


# --- reading with the options of transformers ---


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "inner" / "fused"
    made(family).save_pretrained(folder)
    return folder


READERS = {
    "ours": FusedCausalLM.from_pretrained,
    "auto": AutoModelForCausalLM.from_pretrained,
    "pipeline": lambda path, **options: pipeline("text-generation", model=str(path), model_kwargs=options).model,
}


@pytest.mark.parametrize("reader", READERS)
def test_attention_and_dtype_reach_every_member(reader, folder):
    for options in ({"dtype": torch.bfloat16}, {"torch_dtype": "bfloat16"}, {"dtype": "bfloat16"}):
        model = READERS[reader](folder, attn_implementation="eager", **options)
        assert {member.config._attn_implementation for member in model.members} == {"eager"}
        assert {member.dtype for member in model.members} == {model.dtype, model.config.dtype} == {torch.bfloat16}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"attn_implementation": "nonsense"}, "attn_implementation"),
        ({"nonsense": 1}, "does not take nonsense=1"),
        ({"vocab_size": 7}, "does not take vocab_size=7"),
        ({"max_position_embeddings": 5}, "does not take max_position_embeddings=5"),
        ({"use_cache": False}, "does not take use_cache=False"),
        ({"output_attentions": True}, "does not take output_attentions=True"),
        ({"experts_implementation": "eager"}, "does not take experts_implementation='eager'"),
        ({"use_safetensors": False}, "does not take use_safetensors=False"),
        ({"ignore_mismatched_sizes": True}, "does not take ignore_mismatched_sizes=True"),
    ],
    ids=str,
)
def test_no_option_is_ignored(reader, option, message, folder):
    refused(lambda: READERS[reader](folder, **option), message)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "option", [{"low_cpu_mem_usage": True}, {"use_safetensors": True}, {"torch_dtype": "auto"}, {"device_map": "cpu"}]
)
def test_options_that_change_nothing_here_are_taken(reader, option, folder):
    assert READERS[reader](folder, **option)(TOKENS).logits.equal(FusedCausalLM.from_pretrained(folder)(TOKENS).logits)


@pytest.mark.parametrize("reader", ["ours", "auto"])
def test_sub_folders_and_caches_are_found_as_in_transformers(reader, folder, tmp_path):
    read, expected = READERS[reader], FusedCausalLM.from_pretrained(folder)(TOKENS).logits
    assert read(folder.parent, subfolder="fused")(TOKENS).logits.equal(expected)
    in_hub_cache(tmp_path, "someone/fused", folder.parent, "0" * 40)
    for options in ({"local_files_only": True}, {"revision": "main"}, {"token": "secret"}):
        model = read("someone/fused", cache_dir=str(tmp_path), subfolder="fused", **options)
        assert model(TOKENS).logits.equal(expected)
    refused(lambda: FusedCausalLM.from_pretrained(folder, subfolder="other"), "no such folder: ")


def test_a_given_config_may_say_another_rule_and_dtype(folder):
    config = AutoConfig.from_pretrained(folder, rule={"id": "static", "weights": 0.25}, dtype="bfloat16")
    for read in (FusedCausalLM.from_pretrained, AutoModelForCausalLM.from_pretrained):
        model = read(folder, config=config)
        assert model.arm.rule == Static(0.25) and model.dtype == torch.bfloat16
    refused(lambda: FusedCausalLM.from_pretrained(folder, config=FusedConfig()), "does not take architectures=None")
    with pytest.raises(UserError, match="config must be a FusedConfig, not LlamaConfig"):
        FusedCausalLM.from_pretrained(folder, config=AutoConfig.from_pretrained(folder / "base"))
