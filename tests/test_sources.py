"""Describing, checking and loading a family: shared modules, adapters, identities, one clear line for each mistake."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from peft import LoraConfig, get_peft_model
from tiny import EXPERTS, save_member, tiny_adapter_family, tiny_gpt2, tiny_llama, tiny_tokenizer

from proxytune.errors import UserError
from proxytune.models import FamilySpec, Inputs, Source, check, describe, identity, load
from proxytune.models.distinct import DistinctMembers


@pytest.fixture(scope="module")
def spec(family_folders) -> FamilySpec:
    return FamilySpec(
        base=family_folders["base"],
        antiexpert=family_folders["antiexpert"],
        experts={name: family_folders[f"expert:{name}"] for name in EXPERTS},
        tuned={name: family_folders[f"tuned:{name}"] for name in EXPERTS},
    )


@pytest.fixture(scope="module")
def adapters(adapter_folders) -> FamilySpec:
    over = adapter_folders["antiexpert"]
    return FamilySpec(
        base=adapter_folders["base"],
        antiexpert=over,
        experts={name: Source(over, adapter=adapter_folders[f"expert:{name}"]) for name in EXPERTS},
    )


def answers(ensemble, roles):
    tokens = torch.tensor([[5, 9, 200, 31]])
    return ensemble.step({role: Inputs(ensemble.start(role, 1), tokens, keep=4) for role in roles})


# --- describing ---


def test_a_family_can_be_told_in_a_config(family_folders):
    config = OmegaConf.create(
        {
            "base": str(family_folders["base"]),
            "antiexpert": {"path": str(family_folders["antiexpert"]), "dtype": "float32"},
            "experts": {"math": {"path": str(family_folders["expert:math"])}},
        }
    )
    spec = FamilySpec.of(config)
    assert spec.antiexpert == Source(str(family_folders["antiexpert"]), dtype="float32")
    assert list(spec.sources) == ["base", "antiexpert", "expert:math"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"base": "a", "antiexprt": "b"}, "unknown key 'models.antiexprt'. Did you mean 'models.antiexpert'"),
        ({"base": {"path": "a", "dtpye": "auto"}}, "unknown key 'models.base.dtpye'. Did you mean 'models.base.dtype'"),
        ({"base": {"dtype": "auto"}}, "models.base.path is missing: it is a hub id or a local folder"),
        ({"antiexpert": "a"}, "models.base is missing: it is a path or a mapping"),
        (
            {"base": {"path": "a", "dtype": "float8"}},
            "models.base.dtype='float8' is not allowed: it is auto (as",
        ),
        ({"base": 3}, "models.base=3 is not allowed: it is a path or a mapping"),
        ({"base": ""}, "models.base.path='' is not allowed: it is a hub id or a local folder"),
        ({"base": "a", "experts": {"math": "b"}}, "experts but no antiexpert"),
        ({"base": "a", "experts": ["b"], "antiexpert": "c"}, "experts=['b'] is not allowed: it is a mapping of names"),
        ({"base": "a", "experts": {"a:b": "b"}, "antiexpert": "c"}, "models.experts.a:b: 'a:b' is not a name"),
        ({"base": "a", "experts": {3: "b"}, "antiexpert": "c"}, "experts.3=3 is not allowed: it should be a valid str"),
        (
            {"base": "a", "experts": {"a": 3}, "antiexpert": "c"},
            "experts.a=3 is not allowed: it is a hub id or",
        ),
        (
            {"base": "a", "missing_tokens": "baseonly"},
            "missing_tokens='baseonly' is not allowed: it is refuse or",
        ),
        ({"base": "a", "missing_tokens": "baseonly"}, "did you mean base_only?"),
        ({"base": {"path": ".", "revision": "main"}}, "revision='main' has no effect"),
        ({"base": {"path": "a", "adapter_revision": "main"}}, "adapter_revision='main' has no effect"),
    ],
)
def test_a_wrong_description_is_one_clear_line(config, message):
    with pytest.raises(UserError) as error:
        FamilySpec.of(config)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_gguf_file_stands_for_its_folder():
    assert Source("models/small.gguf") == Source("models", gguf_file="small.gguf")


# --- checking ---


def copied(source: Path, target: Path, *without: str) -> Path:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*without))
    return target


def broken(kind: str, folders: dict[str, Path], adapters: dict[str, Path], tmp: Path) -> Source:
    match kind:
        case "absent":
            return Source(tmp / "absent")
        case "no config":
            return Source(copied(folders["base"], tmp / "model", "config.json"))
        case "no weights":
            return Source(copied(folders["base"], tmp / "model", "*.safetensors"))
        case "no gguf":
            return Source(folders["base"], gguf_file="model.gguf")
        case "adapter as model":
            return Source(adapters["expert:math"])
        case "absent adapter":
            return Source(adapters["antiexpert"], adapter=tmp / "absent")
        case "not an adapter":
            return Source(adapters["antiexpert"], adapter=folders["base"])
        case "adapter without weights":
            return Source(
                adapters["antiexpert"], adapter=copied(adapters["expert:math"], tmp / "adapter", "*.safetensors")
            )
        case "not on the hub":
            return Source("nobody/has-this-model")
        case "no hub revision":
            return Source("nobody/has-this-model", revision="v1")
        case "impossible hub id":
            return Source("no such:model")
    raise AssertionError(kind)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("absent", "no such folder: "),
        ("no config", "has no config.json"),
        ("no weights", "has no .safetensors weights. Pickled weights"),
        ("no gguf", "has no file 'model.gguf'"),
        ("adapter as model", "is an adapter: set path to its base model"),
        ("absent adapter", "no such adapter folder: "),
        ("not an adapter", "has no adapter_config.json"),
        ("adapter without weights", "has no adapter_model.safetensors"),
        ("not on the hub", "'nobody/has-this-model' is neither a local folder nor in the local hub cache"),
        ("no hub revision", "'nobody/has-this-model' at revision 'v1' is neither"),
        ("impossible hub id", "'no such:model' is neither a local folder nor a possible hub id"),
    ],
)
def test_what_can_be_known_before_loading_is_one_clear_line(kind, message, family_folders, adapter_folders, tmp_path):
    source = broken(kind, family_folders, adapter_folders, tmp_path)
    spec = FamilySpec(base=family_folders["base"], antiexpert=family_folders["antiexpert"], experts={"math": source})
    with pytest.raises(UserError) as error:
        check(spec)
    assert message in str(error.value)
    assert str(error.value).startswith("expert:math: ")
    assert "\n" not in str(error.value)


def test_roles_that_are_not_asked_for_are_not_checked(spec, tmp_path):
    check(FamilySpec(spec.base, spec.antiexpert, {"math": Source(tmp_path / "absent")}), roles=["base", "antiexpert"])


def test_an_unknown_role_is_answered_with_the_nearest(spec):
    with pytest.raises(UserError, match=r"unknown role 'expert:maht'. Did you mean 'expert:math'"):
        load(spec, ["base", "expert:maht"])


# --- loading ---


def test_a_loaded_family_answers_as_the_one_in_memory(spec, family):
    ensemble = load(spec)
    assert list(ensemble.members) == list(family.members)
    here, there = answers(ensemble, family.members), answers(family, family.members)
    for role in family.members:
        assert torch.equal(here[role], there[role])
        assert not ensemble[role].model.training


def test_only_the_roles_asked_for_are_loaded(spec, monkeypatch):
    ensemble = load(spec, ["expert:math"])
    assert list(ensemble.members) == ["expert:math"]
    assert ensemble.vocab_size == len(tiny_tokenizer())


@pytest.mark.parametrize("which", ["spec", "adapters", "bfloat16", "listed ends"])
def test_what_is_known_before_loading_is_what_is_loaded(which, spec, adapters, family_folders, tmp_path):
    family = adapters if which == "adapters" else spec
    if which == "bfloat16":
        family = replace(spec, base=replace(spec.base, dtype="bfloat16"))
    if which == "listed ends":
        folder = copied(family_folders["base"], tmp_path / "base")
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 5]}))
        family = replace(spec, base=Source(folder))
    known, loaded = describe(family), load(family)
    assert known is not None
    assert known.members.keys() == loaded.members.keys()
    for role in loaded.members:
        facts = [
            (one.identity, one.dtype, one.ends, one.window, one.missing, one.unknown, one.render)
            for one in (known[role], loaded[role])
        ]
        assert facts[0] == facts[1]
        assert known.ends([role]) == loaded.ends([role])
    if which == "listed ends":
        assert {3, 5} <= set(known.ends(["base"]))


def test_equal_sources_share_one_module(spec):
    path = Path(spec.base.path)
    roundabout = str(path.parent / "." / path.name)
    ensemble = load(FamilySpec(base=path, antiexpert=roundabout, experts={"math": Source(path, dtype="bfloat16")}))
    assert ensemble["base"].model is ensemble["antiexpert"].model
    assert DistinctMembers(ensemble, ensemble.members, lambda role: None).of["antiexpert"] == "base"
    assert ensemble["expert:math"].model is not ensemble["base"].model
    assert ensemble["expert:math"].model.dtype == torch.bfloat16


def test_adapters_over_one_source_share_one_module(adapters):
    ensemble = load(adapters)
    small = [member.model for role, member in ensemble.members.items() if role != "base"]
    assert len({id(model) for model in small}) == 1
    assert not any(weight.requires_grad for weight in small[0].parameters())
    expected = answers(tiny_adapter_family(), ensemble.members)
    for role, logits in answers(ensemble, ensemble.members).items():
        assert torch.equal(logits, expected[role]), role


def test_an_adapter_alone_equals_the_adapter_beside_others(adapters):
    alone = load(adapters, ["expert:trivia"])
    together = load(adapters)
    role = ["expert:trivia"]
    assert torch.equal(answers(alone, role)[role[0]], answers(together, role)[role[0]])


def lora(model, folder: Path, base_path: Path | None, **config) -> Path:
    """A random LoRA adapter over `model`, saved as one over `base_path`."""
    peft = get_peft_model(model, LoraConfig(r=2, init_lora_weights=False, task_type="CAUSAL_LM", **config))
    peft.peft_config["default"].base_model_name_or_path = None if base_path is None else str(base_path)
    peft.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "make",
    [
        lambda size, path: lora(tiny_llama(size, seed=1, hidden=64), path, None, target_modules=["q_proj"]),
        lambda size, path: lora(tiny_gpt2(size, seed=1), path, None, target_modules=["c_attn"], fan_in_fan_out=True),
        lambda size, path: lora(tiny_llama(size, seed=1, hidden=32, layers=4), path, None, target_modules=["q_proj"]),
        lambda size, path: lora(tiny_llama(size, seed=1, hidden=32, layers=1), path, None, target_modules=["q_proj"]),
    ],
    ids=["other size", "other architecture", "more layers", "fewer layers"],
)
def test_an_adapter_that_does_not_fit_to_the_last_tensor_is_refused(make, adapter_folders, tmp_path):
    adapter = make(len(tiny_tokenizer()) + 5, tmp_path / "adapter")
    source = Source(adapter_folders["antiexpert"], adapter=adapter)
    with pytest.raises(UserError, match=r"expert:math: adapter .* does not fit") as error:
        load(FamilySpec(adapter_folders["base"], adapter_folders["antiexpert"], {"math": source}), ["expert:math"])
    assert "\n" not in str(error.value)


def test_weights_that_lack_a_tensor_are_refused(family_folders, tmp_path):
    from safetensors.torch import load_file, save_file

    path = copied(family_folders["base"], tmp_path / "model")
    weights = load_file(path / "model.safetensors")
    del weights["model.layers.1.self_attn.q_proj.weight"]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"base: the weights of .* lack 1 tensors, first 'model.layers.1.self_attn"):
        load(FamilySpec(base=path))


def test_damaged_weights_are_one_clear_line(family_folders, tmp_path):
    path = copied(family_folders["base"], tmp_path / "model")
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"base: can't load .*model") as error:
        load(FamilySpec(base=path))
    assert "\n" not in str(error.value)


# --- the hub's cache, offline ---


def in_hub_cache(cache: Path, repo: str, source: Path, commit: str) -> None:
    """Puts the files of `source` into a hub cache as `repo` at `commit`, with main pointing there."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    shutil.copytree(source, folder / "snapshots" / commit)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(commit)


def test_a_cached_hub_model_loads_offline_and_is_identified_by_its_commit(family_folders, tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    in_hub_cache(tmp_path, "someone/tiny", family_folders["base"], commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    ensemble = load(FamilySpec(base="someone/tiny"))
    assert ensemble["base"].identity == f"someone/tiny@{commit} dtype=auto"
    assert identity(Source("someone/tiny", revision=commit)) == f"someone/tiny@{commit} dtype=auto"
    with pytest.raises(UserError, match=r"base: 'someone/tiny' at revision 'v2' is neither"):
        load(FamilySpec(base=Source("someone/tiny", revision="v2")))


def test_an_adapter_of_another_hub_model_is_refused_by_name(adapter_folders, tmp_path, monkeypatch):
    in_hub_cache(tmp_path, "someone/tiny", adapter_folders["antiexpert"], "0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    adapter = copied(adapter_folders["expert:math"], tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    spec = FamilySpec(adapter_folders["base"], "someone/tiny", {"math": Source("someone/tiny", adapter=adapter)})
    for over in ("someone/tiny", "elsewhere/Tiny", None):
        (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": over}))
        check(spec)
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "someone/other"}))
    with pytest.raises(
        UserError, match=r"expert:math: adapter .* was tuned from 'someone/other', not from 'someone/tiny'"
    ):
        check(spec)


# --- identities ---


def test_identity_follows_the_content_and_not_the_place(family_folders, tmp_path):
    original = identity(Source(family_folders["base"]))
    moved = copied(family_folders["base"], tmp_path / "moved")
    assert identity(Source(moved)) == original
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    assert identity(Source(moved)) != original


def test_identity_tells_precision_and_adapters_apart(family_folders, adapter_folders):
    over = adapter_folders["antiexpert"]
    sources = [
        Source(over),
        Source(over, dtype="bfloat16"),
        Source(over, attn_implementation="eager"),
        *(Source(over, adapter=adapter_folders[f"expert:{name}"]) for name in EXPERTS),
        Source(family_folders["base"]),
    ]
    assert len({identity(source) for source in sources}) == len(sources)


def test_identity_notices_other_weights_under_the_same_name(family_folders, tmp_path):
    tokenizer = tiny_tokenizer()
    path = save_member(tmp_path / "model", tiny_llama(len(tokenizer), seed=1), tokenizer)
    before = identity(Source(path))
    save_member(path, tiny_llama(len(tokenizer), seed=2), tokenizer)
    assert identity(Source(path)) != before


# --- GGUF ---


def gguf_of(model, tokenizer, path: Path) -> Path:
    """A tiny Llama as an unquantised GGUF file."""
    import gguf

    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads["attn_q"])
    writer.add_head_count_kv(heads["attn_k"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(bpe["vocab"], key=bpe["vocab"].get))
    writer.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        stored = names.get_name(name, try_suffixes=(".weight",))
        if (count := heads.get(stored.split(".")[-2])) is not None:  # GGUF pairs the halves that rotate together
            weight = weight.reshape(count, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
        writer.add_tensor(stored, weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf_weights_are_plain_weights_once_loaded(tmp_path):
    tokenizer = tiny_tokenizer()
    model = tiny_llama(len(tokenizer), seed=1)
    path = gguf_of(model, tokenizer, tmp_path / "tiny.gguf")
    ensemble = load(FamilySpec(base=path, antiexpert=Source(tmp_path, gguf_file="tiny.gguf")))
    assert ensemble["base"].model is ensemble["antiexpert"].model
    tokens = torch.tensor([[5, 9, 200, 31]])
    torch.testing.assert_close(ensemble["base"].model(tokens).logits, model(tokens).logits, atol=1e-4, rtol=1e-4)
    text = "How many apples, 12?"
    assert ensemble.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert ensemble.tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert ensemble.tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert ensemble.tokenizer.eos_token_id == tokenizer.eos_token_id
    assert ensemble["base"].model.to(torch.bfloat16).dtype == torch.bfloat16
    before = identity(Source(path))
    gguf_of(tiny_llama(len(tokenizer), seed=2), tokenizer, path)
    assert identity(Source(path)) != before


# --- real weights ---


@pytest.mark.skipif("PROXYTUNE_SMOLLM2" not in os.environ, reason="PROXYTUNE_SMOLLM2 names no SmolLM2 GGUF file")
def test_real_gguf_weights_load_once_for_two_roles_and_speak():
    path = os.environ["PROXYTUNE_SMOLLM2"]
    ensemble = load(FamilySpec(base=path, antiexpert=path))
    assert ensemble["base"].model is ensemble["antiexpert"].model
    assert ensemble.vocab_size == 49152
    tokens = ensemble.tokenizer("The capital of France is", return_tensors="pt").input_ids
    logits = ensemble.step({"base": Inputs(ensemble.start("base", 1), tokens)})["base"]
    assert ensemble.tokenizer.decode(logits[0, -1].argmax()).strip() == "Paris"
