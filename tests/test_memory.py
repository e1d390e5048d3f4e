"""The memory that is estimated before loading, against the models once they are loaded."""

from __future__ import annotations

import logging
import math

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from proxytune.errors import UserError
from proxytune.models import FamilySpec, Source, load
from proxytune.models.loading import memory, sizes


@pytest.mark.parametrize("role", ["base", "antiexpert", "expert:trivia"])
@pytest.mark.parametrize(("dtype", "size"), [("auto", 4), ("bfloat16", 2)])
def test_weights_are_those_that_are_loaded(family_folders, role, dtype, size):
    model = AutoModelForCausalLM.from_pretrained(family_folders[role], dtype=dtype)
    numbers = sum(weight.numel() for weight in model.parameters())
    assert sizes.weight_bytes(Source(str(family_folders[role]), dtype=dtype)) == size * numbers


def test_weights_in_several_files_are_added(family_folders, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(family_folders["base"])
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert sizes.weight_bytes(Source(str(tmp_path))) == sizes.weight_bytes(Source(str(family_folders["base"])))


@pytest.mark.parametrize("role", ["base", "expert:trivia"])
def test_a_token_takes_what_the_cache_grows_by(family_folders, role):
    member = load(FamilySpec(str(family_folders[role])))["base"]
    state = member.start(3)
    tokens = (5 * [[7, 8, 9]])[:3]
    member.read(state, member.model.dummy_inputs["input_ids"].new_tensor(tokens))
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in state.cache.layers)
    assert sizes.cache_bytes(Source(str(family_folders[role]))) == held / 9


def test_shared_modules_count_once_and_what_cannot_be_known_is_said(family_folders, caplog):
    path = str(family_folders["base"])
    one = sizes.weight_bytes(Source(path))
    sources = {"base": Source(path), "antiexpert": Source(path), "tuned:x": Source("nobody/nothing")}
    with caplog.at_level(logging.INFO):
        memory.check_memory(sources)
    assert f"weights on cpu: about {one / 1e6:.1f} MB" in caplog.text
    assert "unknown size before loading: tuned:x" in caplog.text


def test_a_family_that_cannot_fit_is_refused_before_loading(family_folders, monkeypatch):
    spec = FamilySpec(str(family_folders["base"]), str(family_folders["antiexpert"]))
    needed = sum(sizes.weight_bytes(source) for source in spec.sources.values())
    monkeypatch.setattr(memory, "_available", lambda device: needed)
    load(spec)
    monkeypatch.setattr(memory, "_available", lambda device: needed - 1)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    with pytest.raises(UserError, match=r"weights need about .* on cpu.*base .*, antiexpert .*device_map=auto"):
        load(spec)


def test_what_is_available_is_what_the_system_says():
    assert 0 < memory._available("cpu") <= psutil.virtual_memory().total + psutil.swap_memory().total


def test_the_tightest_control_group_is_the_limit(tmp_path):
    def group(folder, files):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text)

    own = tmp_path / "own"
    own.write_text("12:cpu:/job\n9:cpu,memory:/job/step\n0::/job\n")
    root = tmp_path / "cgroup"
    assert memory.room(root, own) == math.inf
    assert memory.room(root, tmp_path / "absent") == math.inf
    group(root / "job", {"memory.max": "max\n", "memory.current": "5\n", "memory.stat": "anon 1\ninactive_file 3\n"})
    assert memory.room(root, own) == math.inf
    group(root / "job", {"memory.max": "1000\n"})
    assert memory.room(root, own) == 1000 - 5 + 3
    stat = {"memory.stat": "cache 9\ntotal_inactive_file 20\n"}
    group(root / "memory/job/step", {"memory.limit_in_bytes": str(2**63 - 4096), "memory.usage_in_bytes": "7", **stat})
    assert memory.room(root, own) == 998
    group(root / "memory/job", {"memory.limit_in_bytes": "900", "memory.usage_in_bytes": "700", **stat})
    assert memory.room(root, own) == 900 - 700 + 20
    group(root / "memory/job", {"memory.limit_in_bytes": "100"})
    assert memory.room(root, own) == 0


def test_a_small_control_group_refuses_a_family_before_loading(family_folders, monkeypatch):
    monkeypatch.setattr(memory, "room", lambda: 1000.0)
    with pytest.raises(UserError, match=r"need about .* MB on cpu, which has 0\.0 MB available \(base .* MB\)"):
        load(FamilySpec(str(family_folders["base"])))


def test_adapters_count_each_once_beside_the_module_that_they_share(adapter_folders, caplog):
    paths = {role: str(path) for role, path in adapter_folders.items()}
    over = {name: Source(paths["antiexpert"], adapter=paths[f"expert:{name}"]) for name in ("math", "trivia")}
    spec = FamilySpec(Source(paths["base"]), Source(paths["antiexpert"]), {**over, "again": over["math"]})
    with caplog.at_level(logging.INFO):
        ensemble = load(spec)
    modules = {id(member.model): member.model for member in ensemble.members.values()}
    held = sum(weight.nbytes for model in modules.values() for weight in model.parameters())
    assert f"weights on cpu: about {held / 1e6:.1f} MB" in caplog.text
    numbers = [weight for name, weight in ensemble["expert:math"].model.named_parameters() if "lora" in name]
    assert 2 * sizes.adapter_bytes(over["math"]) == sum(weight.nbytes for weight in numbers)
    assert "expert:again" in caplog.text  # it has a cache of its own


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:3"])
def test_a_device_that_is_not_there_is_one_line_before_loading(family_folders, monkeypatch, device):
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    with pytest.raises(UserError, match=f"base: device_map={device}, but torch finds no such device here"):
        load(FamilySpec(Source(str(family_folders["base"]), device_map=device)))
