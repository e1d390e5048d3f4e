"""`proxytune plan` against the files' own sizes and sums by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny import save_family
from transformers import LlamaConfig

from proxytune.cli import main
from proxytune.cli.plan import GIB, fitting, member_sizes
from proxytune.models import FamilySpec
from proxytune.models.loading.sizes import configured_bytes, weight_bytes


@pytest.fixture
def family(tmp_path: Path) -> FamilySpec:
    paths = save_family(tmp_path, tuned=("math",))
    experts = {"math": paths["expert:math"], "again": paths["expert:math"], "trivia": paths["expert:trivia"]}
    return FamilySpec.of(
        {"base": paths["base"], "antiexpert": paths["antiexpert"], "experts": experts, "tuned": {"math": paths["base"]}}
    )


def test_weights_by_configuration_are_those_of_the_files(family: FamilySpec):
    for source in (family.base, *family.experts.values()):
        assert configured_bytes(source) == weight_bytes(source)
        half = replace(source, dtype="bfloat16")
        assert configured_bytes(half) == weight_bytes(half) == weight_bytes(source) / 2


@pytest.mark.parametrize(
    ("sizes", "parameters", "kv_bytes"),
    [
        ((4096, 11008, 32, 32, 32), 6_738_415_616, 2 * 32 * 4096 * 2),
        ((5120, 13824, 40, 40, 40), 13_015_864_320, 2 * 40 * 5120 * 2),
        ((8192, 28672, 80, 64, 8), 68_976_648_192, 2 * 80 * 1024 * 2),
    ],
    ids=["7B", "13B", "70B"],
)
def test_llama_2_takes_its_published_parameters_in_two_bytes_each(tmp_path, sizes, parameters, kv_bytes):
    hidden, inner, layers, heads, kv_heads = sizes
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(tmp_path)
    assert member_sizes(FamilySpec.of({"base": tmp_path})) == {"base": (2 * parameters, kv_bytes)}


def test_each_member_counts_once_and_tuned_models_do_not(family: FamilySpec):
    sizes = member_sizes(family)
    assert list(sizes) == ["base", "antiexpert", "expert:math", "expert:trivia"]
    stored = (Path(family.base.path) / "model.safetensors").stat().st_size
    assert stored - 10_000 < sizes["base"][0] < stored
    assert sizes["base"][1] == 2 * 3 * 2 * 12 * 4, "keys and values, layers, KV heads, width of a head, bytes"


def test_the_fewest_gpus_that_fit():
    assert fitting(10, 8 * GIB, GIB // 1000, 1000) == "1, with room for 1,000 tokens"
    assert fitting(10, 8 * GIB, GIB // 1000, 1001) == "2, with room for 10,000 tokens"
    assert fitting(1, 80 * GIB, 1, 1) == "more than 16"


def test_the_command_prints_the_sums(family: FamilySpec, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    members = [f"models.base.path={family.base.path}", f"models.antiexpert.path={family.antiexpert.path}"]
    assert main(["plan", "models=local", *members, "tokens=1000", "gpus=[1]"]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()[1:4]] == ["base", "antiexpert", "together"]
    assert "1 GiB: 1, with room for" in printed


def test_a_source_without_a_configuration_is_one_line(tmp_path: Path, capsys):
    assert main(["plan", "models=local", f"models.base.path={tmp_path}", "models.antiexpert=null"]) == 1
    assert "has no config.json" in capsys.readouterr().err
