"""Every kind of adapter that the installed PEFT offers: exact in its role and absent in the others, or refused."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from tiny import save_member, tiny_llama, tiny_tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from proxytune import FusedCausalLM
from proxytune.errors import UserError
from proxytune.fusion import Static
from proxytune.models import ADAPTERS_OFF, FamilySpec, Member, Source, load
from proxytune.models.loading import adapters, modules

TOKENIZER = tiny_tokenizer()
SIZE = len(TOKENIZER)
TOKENS = torch.tensor([TOKENIZER("Question: how many apples are there?")["input_ids"]])
PARTS = (TOKENS[:, :-2], TOKENS[:, -2:-1], TOKENS[:, -1:])
LINEAR = ["q_proj", "v_proj", "down_proj"]

SETTINGS: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 10},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 1, "target_modules": None},
    "C3A": {"block_size": 8},
    "CPT": {"cpt_token_ids": [5, 6], "cpt_mask": [1, 1], "cpt_tokens_type_mask": [1, 2]},
    "FOURIERFT": {"n_frequency": 16},
    "IA3": {"feedforward_modules": ["down_proj"]},
    "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "OFT": {"r": 0, "oft_block_size": 4},
    "ROAD": {"group_size": 8},
    "SHADOW": {"target_modules": None, "shadow_num_hidden_layers": 1},
    "TRAINABLE_TOKENS": {"token_indices": TOKENS[0, :2].tolist(), "target_modules": ["embed_tokens"]},
    "VBLORA": {"vector_length": 8, "num_vectors": 16},
    "WAVEFT": {"n_frequency": 16},
    "XLORA": {"hidden_size": 32, "target_modules": None},
}
"""What a kind needs to be built on the tiny model; others take rank 4 over the linear layers, or 4 virtual tokens."""

LORAS: dict[str, dict[str, Any]] = {
    "all biases": {"bias": "all"},
    "its biases": {"bias": "lora_only"},
    "DoRA": {"use_dora": True},
    "rsLoRA": {"use_rslora": True},
    "head of its own": {"modules_to_save": ["lm_head"]},
    "tokens of its own": {"trainable_token_indices": TOKENS[0, :2].tolist()},
    "bias in B": {"lora_bias": True},
    "layers twice": {"layer_replication": [[0, 2], [1, 2]]},
    "activated": {"alora_invocation_tokens": [5]},
    **{
        f"init {name}": {"init_lora_weights": name}
        for name in ("gaussian", "eva", "orthogonal", "olora", "pissa", "pissa_niter_4", "lora_ga", False)
    },
}
REFUSED = {
    "ADAPTION_PROMPT": "only adapters of weights",
    "CARTRIDGE": "only adapters of weights",
    "CPT": "only adapters of weights",
    "MULTITASK_PROMPT_TUNING": "only adapters of weights",
    "P_TUNING": "only adapters of weights",
    "PREFIX_TUNING": "only adapters of weights",
    "PROMPT_TUNING": "only adapters of weights",
    "LILY": "type LILY is not supported: a row read in a batch",  # its router averages over all rows
    "SHADOW": "adapter of type SHADOW can.t be read through a cache",  # it has a cache of its own
    "POLY": "can't be read through a cache: task_ids should not be None",
    "XLORA": "`use_cache` must be False",
    "LORA activated": "alora_invocation_tokens",
    "LORA init pissa_niter_4": "not saved with it",
    "LORA init lora_ga": "not saved with it",
}
OWN_MODULE = {"LORA all biases", "LORA its biases", "LORA layers twice", "LORA init olora", "LORA init pissa"}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    **{kind.value: (kind.value, {}) for kind in PeftType},
    **{f"LORA {name}": ("LORA", settings) for name, settings in LORAS.items()},
}


def small() -> PreTrainedModel:
    """A tiny Llama whose attention has biases, which adapters may train."""
    config = tiny_llama(SIZE + 5, seed=2).config
    config.attention_bias = True
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = type(tiny_llama(SIZE, seed=2))(config).eval()
        for name, weight in model.named_parameters():
            wide = 0.6 if "head" in name or "embed" in name else 2 * weight.shape[-1] ** -0.5
            torch.nn.init.normal_(weight, mean=float("norm" in name), std=wide if weight.dim() > 1 else 0.1)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    save_member(folder / "base", tiny_llama(SIZE + 3, seed=1), TOKENIZER)
    save_member(folder / "small", small(), TOKENIZER)
    return folder


def configuration(kind: str, given: dict[str, Any], folder: Path) -> Any:
    build = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)]
    known = {field.name for field in dataclasses.fields(build)}
    usual = {"target_modules": LINEAR, "r": 4, "num_virtual_tokens": 4, "task_type": "CAUSAL_LM"}
    settings = usual | SETTINGS.get(kind, {}) | given
    if kind == "XLORA":
        settings["adapters"] = {"0": str(folder / "LORA")}
    return build(**{name: value for name, value in settings.items() if name in known})


def trained(kind: str, folder: Path) -> PeftModel:
    """The small model with an adapter of this kind, its weights moved as if by training."""
    name, given = KINDS[kind]
    torch.manual_seed(7)
    plain = AutoModelForCausalLM.from_pretrained(folder / "small")
    plain.config.use_cache = kind != "XLORA"
    with warnings.catch_warnings(action="ignore"):
        model = get_peft_model(plain, configuration(name, given, folder))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.3)
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    """After the last three tokens, in one pass without a cache."""
    with torch.inference_mode():
        return model(TOKENS, use_cache=False).logits[0, -3:, :SIZE].float()


def read(member: Member) -> torch.Tensor:
    """The same as engines read: the prompt, then token by token."""
    state = member.start(1)
    return torch.cat([member.read(state, part) for part in (TOKENS[:, :-2], TOKENS[:, -2:-1], TOKENS[:, -1:])], dim=1)[
        0
    ]


def saved(kind: str, folder: Path) -> tuple[Source, PeftModel]:
    model = trained(kind, folder)
    model.peft_config["default"].base_model_name_or_path = str(folder / "small")
    model.save_pretrained(folder / kind)
    return Source(folder / "small", adapter=folder / kind), model


def family(folder: Path, *experts: Source) -> FamilySpec:
    return FamilySpec(folder / "base", folder / "small", {f"e{i}": source for i, source in enumerate(experts)})


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def plain() -> torch.Tensor:
    return logits(small())


def prepared(kind: str, folder: Path) -> None:
    if kind == "XLORA":  # it mixes others
        saved("LORA", folder)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_from_a_folder_is_exact_in_its_role_and_absent_in_the_other(kind, folders, plain, caplog):
    prepared(kind, folders)
    source, model = saved(kind, folders)
    if kind in REFUSED:
        with pytest.raises(UserError, match=REFUSED[kind]) as error:
            load(family(folders, source), ["antiexpert", "expert:e0"])
        assert "expert:e0" in str(error.value) and "\n" not in str(error.value)
        return
    caplog.set_level("INFO")
    ensemble = load(family(folders, source), ["antiexpert", "expert:e0"])
    expected = logits(model)
    assert (expected - plain).abs().max() > 0.1, "the adapter does nothing, so this test shows nothing"
    close(read(ensemble["antiexpert"]), plain)
    close(read(ensemble["expert:e0"]), expected)
    own = ensemble["antiexpert"].model is not ensemble["expert:e0"].model
    assert own == (kind in OWN_MODULE) == ("gets a module of its own" in caplog.text)


def test_adapters_of_several_types_over_one_module_are_each_exact(folders, plain, caplog):
    """PEFT refuses to put them on the same module."""
    kinds = ["LORA", "IA3", "LORA DoRA", "OFT"]
    found = [saved(kind, folders) for kind in kinds]
    caplog.set_level("INFO")
    ensemble = load(family(folders, *(source for source, _ in found)))
    close(read(ensemble["antiexpert"]), plain)
    for i, (_, model) in enumerate(found):
        close(read(ensemble[f"expert:e{i}"]), logits(model))
    shared = [ensemble[f"expert:e{i}"].model is ensemble["antiexpert"].model for i in range(len(kinds))]
    assert shared == [True, False, True, False] and caplog.text.count("gets a module of its own") == 2


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_in_memory_is_exact_or_refused(kind, folders, plain):
    """Prefix tuning, say, was accepted and read through a cache that has no place for its prefix."""
    prepared(kind, folders)
    model, base = trained(kind, folders), tiny_llama(SIZE + 3, seed=1)
    try:
        fused = FusedCausalLM.compose(base, model, small(), Static(1.0), TOKENIZER)
    except UserError as error:
        assert kind in REFUSED and "init" not in kind and "expert" in str(error)
        return
    expected = logits(base) + logits(model) - plain
    state = fused.new_cache(1)
    parts = [
        fused(part, past_key_values=state).logits[0, -1:] for part in (TOKENS[:, :-2], TOKENS[:, -2:-1], TOKENS[:, -1:])
    ]
    close(torch.cat(parts), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_switching_off_in_memory_is_refused_where_it_is_not_the_plain_model(kind, folders, plain):
    """Nothing tells the weights from those before the adapter came: its configuration decides."""
    prepared(kind, folders)
    model = trained(kind, folders)
    try:
        member = Member("antiexpert", model, SIZE, adapter=ADAPTERS_OFF)
    except UserError as error:
        assert kind in REFUSED or "has changed the weights of the module under it" in str(error)
        return
    if kind != "XLORA":
        close(read(member), plain)


@pytest.mark.parametrize(
    "kind", ["LORA head of its own", "LORA tokens of its own", "LORA init pissa", "LORA all biases"]
)
def test_two_adapters_keep_out_of_each_others_way(kind, folders, plain):
    """One brings what the other lacks: parts of its own, or weights that it changes."""
    (first, one), (second, two) = saved("LORA", folders), saved(kind, folders)
    for order in ((first, second), (second, first)):
        ensemble = load(family(folders, *order), ["expert:e0", "expert:e1", "antiexpert"])
        models = (one, two) if order == (first, second) else (two, one)
        for role, model in zip(("expert:e0", "expert:e1"), models, strict=True):
            close(read(ensemble[role]), logits(model))
        close(read(ensemble["antiexpert"]), plain)


def test_base_and_tuned_share_a_module_in_the_same_way(folders, plain):
    source, model = saved("LORA all biases", folders)
    ensemble = load(FamilySpec(folders / "small", tuned={"a": source}))
    close(read(ensemble["base"]), plain)
    close(read(ensemble["tuned:a"]), logits(model))


def test_weights_that_change_unforeseen_are_noticed(folders, monkeypatch):
    source, _ = saved("LORA all biases", folders)
    monkeypatch.setattr(adapters, "alters", lambda config: False)
    with pytest.raises(UserError, match=r"antiexpert, expert:e0: an adapter has changed '.*bias' of the module"):
        load(family(folders, source), ["antiexpert", "expert:e0"])
    assert modules.hashes(small()) == modules.hashes(small())


def test_one_module_in_memory_is_not_plain_and_adapted_at_once(folders):
    """PEFT changes the module that it is given: the antiexpert would be the expert."""
    plain = small()
    expert = get_peft_model(plain, LoraConfig(target_modules=LINEAR, init_lora_weights=False))
    with pytest.raises(UserError, match="antiexpert and expert:expert are one module, into which PEFT has put"):
        FusedCausalLM.compose(tiny_llama(SIZE + 3, seed=1), expert, plain, Static(1.0), TOKENIZER)


def test_settings_that_the_installed_peft_does_not_know_are_refused(folders):
    source, _ = saved("LORA", folders)
    file = Path(str(source.adapter)) / "adapter_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"use_next": None}))
    load(family(folders, source), ["expert:e0"])
    file.write_text(json.dumps(settings | {"use_next": True}))
    with pytest.raises(UserError, match=r"expert:e0: PEFT .* does not know these settings .*'use_next': True"):
        load(family(folders, source), ["expert:e0"])
    file.write_text(json.dumps(settings | {"peft_type": "NEXT"}))
    with pytest.raises(UserError, match=r"expert:e0: PEFT .* can't read adapter"):
        load(family(folders, source), ["expert:e0"])


# --- saving what is in memory ---


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_that_is_active_in_memory_is_saved_as_it_is(kind, folders, tmp_path):
    """As base and as expert; also over weights that it has changed, which are saved as they are."""
    prepared(kind, folders)
    try:
        model = trained(kind, folders)
        fused = FusedCausalLM.compose(model, tiny_llama(SIZE + 3, seed=1), small(), Static(1.0), TOKENIZER)
    except UserError:
        assert kind in REFUSED and "init" not in kind
        return
    model.set_adapter("default")
    expert = FusedCausalLM.compose(tiny_llama(SIZE + 3, seed=1), model, small(), Static(1.0), TOKENIZER)
    for i, whole in enumerate((fused, expert)):
        expected = whole(TOKENS).logits
        whole.save_pretrained(tmp_path / str(i))
        assert whole(TOKENS).logits.equal(expected), "saving has changed the model"
        close(FusedCausalLM.from_pretrained(tmp_path / str(i))(TOKENS).logits, expected)


def two_adapters() -> PeftModel:
    model = get_peft_model(small(), LoraConfig(target_modules=LINEAR, init_lora_weights=False), adapter_name="one")
    model.add_adapter("two", LoraConfig(target_modules=LINEAR, init_lora_weights=False))
    return model


def alone(model: Any) -> FusedCausalLM:
    return FusedCausalLM.compose(model, tokenizer=TOKENIZER)


@pytest.mark.parametrize("chosen", ["one", "two", None])
def test_the_adapter_in_use_when_saving_is_the_one_saved(chosen, tmp_path):
    """None: all are switched off."""
    model = two_adapters()
    fused = alone(model)
    if chosen is None:
        model.base_model.disable_adapter_layers()
    else:
        model.set_adapter(chosen)
    fused.save_pretrained(tmp_path)
    close(FusedCausalLM.from_pretrained(tmp_path)(TOKENS).logits, fused(TOKENS).logits)
    assert (chosen is None) == fused(TOKENS).logits.equal(alone(small())(TOKENS).logits)


def test_several_active_adapters_and_merged_ones_are_not_saved(tmp_path):
    model = two_adapters()
    model.base_model.set_adapter(["one", "two"])
    with pytest.raises(UserError, match=r"base has 2 active adapters: combine them \(add_weighted_adapter\)"):
        alone(model).save_pretrained(tmp_path)
    model = two_adapters()
    model.merge_adapter(["one"])
    with pytest.raises(UserError, match="base: its adapters are merged into its weights"):
        alone(model).save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_adapter_that_transformers_has_put_into_a_model_is_not_lost(folders, tmp_path):
    """`AutoModelForCausalLM.from_pretrained(ADAPTER)` gives such a model: transformers would save the adapter alone."""
    source, peft = saved("LORA", folders)
    model = AutoModelForCausalLM.from_pretrained(str(source.adapter))
    fused = alone(model)
    close(fused(TOKENS).logits[0, -3:], logits(peft))
    with pytest.raises(UserError, match="base: an adapter inside a plain model is not saved: give a PeftModel"):
        fused.save_pretrained(tmp_path / "fused")
    assert not (tmp_path / "fused").exists()
