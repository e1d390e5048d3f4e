"""Members in bfloat16, whose weights vLLM may round to eight bits while it loads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import pytest
import torch
from engine_reference import score
from families import TOKENIZER, llama, prompts, save_members
from safetensors.torch import load_file, save_file
from tiny import save_member
from torch import Tensor, nn

from proxytune.engines.requests import Prompt, ScoreRequest
from proxytune.engines.vllm.engine import VLLMEngine
from proxytune.engines.vllm.launch import engine_arguments
from proxytune.errors import UserError
from proxytune.fusion import Static
from proxytune.fusion.arm import Arm
from proxytune.models import Ensemble, FamilySpec, Source, describe, load

ARMS = [Arm("base"), Arm("expert", base="expert:math"), Arm("proxy", rule=Static(0.5), experts=("expert:math",))]
REQUESTS = [ScoreRequest(Prompt(text[:1]), text[1:]) for text in prompts(6, 60, seed=3) if len(text) > 1]
FP8 = torch.float8_e4m3fn


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> FamilySpec:
    """One layer each: rounding grows with every layer until nothing is left to compare."""
    members = {"base": llama(1, 12, hidden=128, layers=1), "antiexpert": llama(2, layers=1)}
    members["expert:math"] = llama(3, layers=1)
    return save_members(tmp_path_factory.mktemp("family"), {role: one.bfloat16() for role, one in members.items()})


@pytest.fixture(scope="module")
def exact(family: FamilySpec) -> dict[str, Tensor]:
    """Scores of every arm by the slow loop in float32."""
    return _by_loop(_in_float32(family))


def test_bfloat16_changes_scores_by_its_rounding_alone(family: FamilySpec, exact: dict[str, Tensor]):
    """On average by 2 % of their spread."""
    for name, scores in _by_vllm(family).items():
        assert (scores - exact[name]).abs().mean() < 0.02 * exact[name].std(), name


def test_eight_bits_are_those_of_a_loop_that_rounds_weights_and_inputs(family: FamilySpec, exact: dict[str, Tensor]):
    """Closer to the loop that rounds both, channel by channel and token by token, than to those that round less."""
    weights, both = (_by_loop(_rounded(_in_float32(family), inputs)) for inputs in (False, True))
    for name, scores in _by_vllm(family, quantization="fp8_per_channel").items():
        away = [(scores - loop[name]).abs().mean() for loop in (both, weights, exact)]
        assert away[0] < away[1] < away[2] and away[0] < 0.75 * away[2], (name, away)


def test_a_base_that_is_stored_in_whole_numbers_has_plain_experts_beside_it(family: FamilySpec, tmp_path: Path):
    """As compressed-tensors stores them; of -7 to 7, so that the rounding is far above that of bfloat16."""
    _store_in_integers(Path(family.weights("base").path), tmp_path)
    stored = replace(family, base=Source(str(tmp_path), dtype="bfloat16"))
    ensemble = _in_float32(family)
    plain = _by_loop(ensemble)
    _round_linear(ensemble["base"].model, _to_integers, inputs=False)
    rounded = _by_loop(ensemble)
    for name, scores in _by_vllm(stored).items():
        away, expected = (float((scores - loop[name]).abs().mean()) for loop in (plain, rounded))
        assert name == "expert" or expected < 0.5 * away, (name, expected, away)
        assert expected < 0.05 * plain[name].std(), name


def test_a_wrong_method_and_one_that_fits_no_float32_are_one_line(family: FamilySpec, tmp_path: Path):
    with pytest.raises(UserError, match=r"quantization=int3 is not allowed: give one of fp8_per_block, .* or null"):
        engine_arguments(describe(family), family, quantization="int3")
    with pytest.raises(UserError, match="no kernel for quantization=fp8_per_tensor on a CPU: use fp8_per_channel"):
        engine_arguments(describe(family), family, quantization="fp8_per_tensor")
    plain = FamilySpec.of({"base": save_member(tmp_path, llama(1), TOKENIZER)})
    with pytest.raises(UserError, match=r"vLLM refuses this engine: .*float32 is not supported for quantization"):
        VLLMEngine(describe(plain), plain, memory=0.1, quantization="fp8_per_channel")


def _by_vllm(family: FamilySpec, quantization: str | None = None) -> dict[str, Tensor]:
    engine = VLLMEngine(describe(family), family, memory=0.1, quantization=quantization)
    found: dict[str, list[float]] = {arm.name: [] for arm in ARMS}
    for _, name, answer in engine.score(REQUESTS, ARMS):
        found[name] += answer.logprobs
    engine.close()
    return {name: torch.tensor(scores) for name, scores in found.items()}


def _by_loop(ensemble: Ensemble) -> dict[str, Tensor]:
    return {arm.name: torch.cat([score(ensemble, arm, request)[0] for request in REQUESTS]) for arm in ARMS}


def _in_float32(family: FamilySpec) -> Ensemble:
    ensemble = load(family)
    for member in ensemble.members.values():
        member.model.float()
    return ensemble


def _rounded(ensemble: Ensemble, inputs: bool) -> Ensemble:
    for member in ensemble.members.values():
        _round_linear(member.model, _to_fp8, inputs)
    return ensemble


def _round_linear(model: nn.Module, rounded: Callable[[Tensor], Tensor], inputs: bool) -> None:
    """All linear layers but the head round their weights, and their `inputs` if so."""
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and name != "lm_head":
            layer.weight.data = rounded(layer.weight.data)
            if inputs:
                layer.register_forward_pre_hook(lambda _, given: (rounded(given[0]),))


def _store_in_integers(folder: Path, to: Path) -> None:
    """The model in `folder`, the weights of its linear layers but for the head as whole numbers and scales."""
    copytree(folder, to, dirs_exist_ok=True)
    weights = load_file(to / "model.safetensors")
    for name in [name for name in weights if name.endswith("_proj.weight")]:
        scale = _scale(weights[name].float())
        weights[name + "_scale"] = scale.bfloat16()
        weights[name] = (weights[name] / scale).round().to(torch.int8)
    save_file(weights, to / "model.safetensors", {"format": "pt"})
    eight = {"num_bits": 8, "type": "int", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**eight, "strategy": "channel", "dynamic": False},
        "input_activations": {**eight, "strategy": "token", "dynamic": True},
    }
    stored = {"quant_method": "compressed-tensors", "format": "int-quantized", "ignore": ["lm_head"]}
    file = to / "config.json"
    config = json.loads(file.read_text()) | {"quantization_config": {**stored, "config_groups": {"group_0": group}}}
    file.write_text(json.dumps(config))


def _scale(rows: Tensor) -> Tensor:
    return rows.abs().amax(-1, keepdim=True) / 7


def _to_integers(rows: Tensor) -> Tensor:
    """`rows` [..., n] in whole numbers of -7 to 7 times a scale of each row."""
    return (rows / _scale(rows)).round() * _scale(rows).bfloat16()


def _to_fp8(rows: Tensor) -> Tensor:
    """`rows` [..., n] in eight bits, the largest of each row at the largest number, and back."""
    scale = rows.abs().amax(-1, keepdim=True) / torch.finfo(FP8).max
    return (rows / scale).to(FP8).to(rows.dtype) * scale
