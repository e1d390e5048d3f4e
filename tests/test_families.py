"""The real families of conf/models, on stand-ins: vocabularies, chat prompts, options, and what goes wrong offline."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from invented import FOLDER, needs_real
from omegaconf import OmegaConf
from standins import ROOT, fill_standins, use
from test_prompts import published

from proxytune.errors import UserError
from proxytune.models import Ensemble, FamilySpec, Source, check, load
from proxytune.models.chat import Chat, ChatPrompt
from proxytune.models.distinct import DistinctMembers

CONF = ROOT / "conf"
BEHIND_ENDPOINTS = {"api", "gpt35_llama2_7b_liu2024"}
NOT_REAL = {"miniature", "miniature_prompt_loss", "local", "smollm2_selfcheck", "smollm2_transfer", *BEHIND_ENDPOINTS}
FAMILIES = sorted(path.stem for path in (CONF / "models").glob("*.yaml") if path.stem not in NOT_REAL)
VOCABULARY = {"llama2": 32_000, "tinyllama": 32_000, "codellama": 32_000, "llama3": 128_256, "qwen25": 151_665}


@pytest.fixture(scope="module")
def standins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("standins")
    fill_standins.fill(folder)
    fill_standins.fill_trained(folder / "trained")
    return folder


@pytest.fixture(autouse=True)
def offline(standins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, standins)


def family(name: str, **changes: object) -> FamilySpec:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = OmegaConf.to_container(compose(f"models/{name}").models, resolve=True)
    assert isinstance(config, dict)
    return FamilySpec.of({**config, **changes})


@cache
def loaded(name: str) -> Ensemble:
    """The whole family, loaded once for all tests."""
    return load(family(name))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_source_of_a_family_is_there(name: str, standins: Path):
    spec = family(name)
    check(spec)
    for source in spec.sources.values():
        trained = Path(source.path).is_relative_to(standins)
        known = fill_standins.TRAINED if trained else fill_standins.REPOSITORIES
        assert (str(Path(source.path).relative_to(standins / "trained")) if trained else source.path) in known


def test_no_standin_is_without_a_family():
    paths = {source.path for name in FAMILIES for source in family(name).sources.values()}
    assert set(fill_standins.REPOSITORIES) == {path for path in paths if "trained" not in Path(path).parts}


@pytest.mark.parametrize(
    "name",
    [
        "llama2_7b_13b",
        "tinyllama_1b_13b_fan2024",
        "codellama_7b_13b",
        "llama3_1b_8b",
        "qwen25_05b_72b",
        "smollm2_135m_1700m",
    ],
)
def test_members_share_one_vocabulary(name: str):
    """Logits end where the tokenizer's tokens end, whatever the padding of the heads, and fuse in one shape."""
    ensemble = loaded(name)
    assert ensemble.vocab_size == VOCABULARY.get(name.split("_")[0], 49_152)
    prompt = torch.tensor([ensemble.tokenizer("Question: how many?")["input_ids"]])
    for role, member in ensemble.members.items():
        logits = member.read(member.start(1), prompt)
        assert logits.shape == (1, 1, ensemble.vocab_size), role
        assert not logits.isnan().any()


def test_heads_are_padded_as_the_real_ones():
    ensemble = loaded("qwen25_05b_72b")
    rows = {role: member.model.config.vocab_size for role, member in ensemble.members.items()}
    assert rows == {"base": 152_064, "antiexpert": 151_936, "expert:chat": 151_936, "tuned:chat": 152_064}


def test_code_llamas_further_tokens_need_a_policy():
    ensemble = loaded("codellama_7b_13b")
    assert ensemble["expert:code"].model.config.vocab_size == 32_016
    with pytest.raises(UserError, match=r"only expert:code knows 16 tokens \(32000 '▁<PRE>'.*missing_tokens=base_only"):
        load(family("codellama_7b_13b", missing_tokens="refuse"), ["base", "expert:code"])


# --- chat prompts ---------------------------------------------------------------------------------------------------


def rendered(name: str, role: str, prompt: str) -> tuple[str, list[int]]:
    member = loaded(name)[role]
    assert member.render is not None and member.tokenizer is not None
    text = member.render(prompt)
    return text, member.tokenizer(text)["input_ids"]


def test_llama2_chat_prompt_is_the_published_one():
    """The user's turn ends before "Answer:", which begins the model's, as in Liu et al. 2024's example."""
    plain = "Answer the following question.\n\nQuestion: how many?\nAnswer:"
    text, tokens = rendered("llama2_7b_13b", "expert:chat", plain)
    assert text == "[INST] Answer the following question.\n\nQuestion: how many? [/INST] Answer:"
    assert tokens.count(1) == 1 and tokens[0] == 1, "one beginning-of-sequence token"


@needs_real
def test_truthfulqa_chat_prompts_equal_all_published_ones():
    """The tuned model's 817 published prompts, to the letter, and the expert's as the published code frames them."""
    chats = _lines(FOLDER / "published/liu2024/truthfulqa_mc/llama2-chat-70B-helpful-prompt.jsonl")
    plain = _lines(FOLDER / "truthfulqa/liu2024_mc_prompts.jsonl")
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        models = compose("run", ["experiment=liu2024_instruction_truthfulqa_70b", "output=x"]).models
    config = OmegaConf.to_container(models, resolve=True)
    ensemble = load(FamilySpec.of(config), ["tuned:chat", "expert:chat"])  # type: ignore[arg-type]
    tuned, expert = ensemble["tuned:chat"].render, ensemble["expert:chat"].render
    assert isinstance(tuned, ChatPrompt) and isinstance(expert, ChatPrompt)
    assert len(chats) == 817
    for theirs, ours in zip(chats, plain, strict=True):
        assert tuned(ours["mc_prompt"]) == theirs["mc_prompt"]
        assert expert(ours["mc_prompt"]) == published(ours["mc_prompt"], tuned.chat.system_prompt, "The answer is:")


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_chat_prompts_of_the_other_families():
    text, tokens = rendered("llama3_1b_8b", "expert:chat", "Question: how?\nAnswer:")
    assert text.startswith("<|start_header_id|>user<|end_header_id|>\n\nQuestion: how?<|eot_id|>")
    assert text.endswith("assistant<|end_header_id|>\n\nAnswer:") and tokens.count(128_000) == 1
    text, tokens = rendered("qwen25_05b_72b", "expert:chat", "Question: how?\nAnswer:")
    assert text.startswith("<|im_start|>system\n") and text.endswith("<|im_start|>assistant\nAnswer:")
    assert tokens[0] == 151_644
    text, tokens = rendered("smollm2_135m_1700m", "expert:chat", "Question: how?")
    assert text.startswith("<|im_start|>") and tokens[0] == 1, "begins the template; is not dropped as if it were added"


def test_equal_chat_prompts_run_once():
    """Two roles of one chat model run once; with another system prompt they do not."""
    chat = Source("meta-llama/Llama-2-7b-chat-hf", chat=Chat())
    other = Source("meta-llama/Llama-2-7b-chat-hf", chat=Chat(system_prompt="Be brief."))
    small = Source("meta-llama/Llama-2-7b-hf")
    ensemble = load(FamilySpec(small, small, experts={"a": chat, "b": chat, "c": other}))
    members = DistinctMembers(ensemble, ensemble.members, lambda role: (ensemble[role].render or str)("How?"))
    assert members.of["expert:b"] == "expert:a"
    assert members.of["expert:c"] == "expert:c"
    assert ensemble["expert:c"].model is ensemble["expert:a"].model
    assert ensemble["expert:c"].identity != ensemble["expert:a"].identity


def test_chat_mistakes_are_one_line():
    small = Source("meta-llama/Llama-2-7b-hf")
    with pytest.raises(UserError, match="expert:x: 'meta-llama/Llama-2-7b-hf' has no chat template"):
        load(FamilySpec(small, small, experts={"x": Source(small.path, chat=Chat())}))
    with pytest.raises(UserError, match=r"key 'source\.chat\.system'.*Did you mean 'source\.chat\.system_prompt'"):
        Source("a/b", chat={"system": "x"})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"chat\.response_prefixes='Answer:' is not allowed: it is a list of texts"):
        Chat(response_prefixes="Answer:")  # type: ignore[arg-type]


def test_a_template_that_refuses_the_system_prompt_is_named():
    tokenizer = load(family("llama2_7b_13b"), ["expert:chat"])["expert:chat"].tokenizer
    assert tokenizer is not None
    tokenizer.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    with pytest.raises(UserError, match=r"expert:chat: the chat template refuses chat\.system_prompt: no system turn"):
        ChatPrompt.of(Chat(system_prompt="x"), tokenizer, "expert:chat")


# --- options and mistakes -------------------------------------------------------------------------------------------


def test_options_are_honoured():
    source = Source("meta-llama/Llama-2-7b-hf", dtype="bfloat16", attn_implementation="eager", device_map="cpu")
    model = load(FamilySpec(source))["base"].model
    assert model.dtype == torch.bfloat16 and model.config._attn_implementation == "eager"
    assert load(FamilySpec(Source("meta-llama/Llama-2-7b-hf")))["base"].model.dtype == torch.float16, "as stored"


def test_quantisation_and_memory_reach_transformers(monkeypatch: pytest.MonkeyPatch):
    from transformers import AutoModelForCausalLM

    seen: dict = {}

    def from_pretrained(path: str, **options: object) -> None:
        seen.update(options)
        raise ValueError("far enough")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    quantization = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    source = Source("meta-llama/Llama-2-7b-hf", device_map="auto", max_memory={0: "70GiB"}, quantization=quantization)
    with pytest.raises(UserError, match="far enough"):
        load(FamilySpec(source))
    assert seen["max_memory"] == {0: "70GiB"} and seen["quantization_config"].load_in_4bit
    assert "load_in_4bit" in str(source.quantization)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            {"path": "meta-llama/Llama-2-8b-hf"},
            "'meta-llama/Llama-2-8b-hf' is neither a local folder nor in the local hub",
        ),
        ({"path": "meta-llama/Llama-2-7b-hf", "revision": "v9"}, "at revision 'v9' is neither|has no revision 'v9'"),
        ({"path": "meta-llama/Llama-2-7b-hf", "max_memory": {0: "1GiB"}}, "max_memory has no effect"),
        ({"path": "meta-llama/Llama-2-7b-hf", "quantization": {"quant_method": "magic"}}, "magic"),
        ({"path": "meta-llama/Llama-2-7b-hf", "quantization": {"bits": 4}}, "quant_method"),
    ],
)
def test_mistakes_are_one_line(source: dict, message: str):
    with pytest.raises(UserError, match=message) as raised:
        load(FamilySpec(source))  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def test_the_resolved_commit_is_the_identity(standins: Path):
    commit = (standins / "hub/models--meta-llama--Llama-2-7b-hf/refs/main").read_text()
    assert load(FamilySpec(Source("meta-llama/Llama-2-7b-hf")))["base"].identity.startswith(
        f"meta-llama/Llama-2-7b-hf@{commit}"
    )


def test_configs_invent_no_revision():
    for name in FAMILIES:
        text = (CONF / "models" / f"{name}.yaml").read_text()
        assert "revision: null" in text or "defaults:" in text
        yaml.safe_load(text)
