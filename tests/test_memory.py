"""The memory that is estimated before loading, against the models once they are loaded."""

from __future__ import annotations

import logging

import psutil
import pytest
from transformers import AutoModelForCausalLM

from proxytune.errors import UserError
from proxytune.models import FamilySpec, Source, load, memory


@pytest.mark.parametrize("role", ["base", "antiexpert", "expert:trivia"])
@pytest.mark.parametrize(("dtype", "size"), [("auto", 4), ("bfloat16", 2)])
def test_weights_are_those_that_are_loaded(family_folders, role, dtype, size):
    model = AutoModelForCausalLM.from_pretrained(family_folders[role], dtype=dtype)
    numbers = sum(weight.numel() for weight in model.parameters())
    assert memory.weight_bytes(Source(str(family_folders[role]), dtype=dtype)) == size * numbers


def test_weights_in_several_files_are_added(family_folders, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(family_folders["base"])
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert memory.weight_bytes(Source(str(tmp_path))) == memory.weight_bytes(Source(str(family_folders["base"])))


@pytest.mark.parametrize("role", ["base", "expert:trivia"])
def test_a_token_takes_what_the_cache_grows_by(family_folders, role):
    member = load(FamilySpec(str(family_folders[role])))["base"]
    reading = member.start(3)
    tokens = (5 * [[7, 8, 9]])[:3]
    member.read(reading, member.model.dummy_inputs["input_ids"].new_tensor(tokens))
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in reading.cache.layers)
    assert memory.cache_bytes(Source(str(family_folders[role]))) == held / 9


def test_shared_modules_count_once_and_what_cannot_be_known_is_said(family_folders, caplog):
    path = str(family_folders["base"])
    one = memory.weight_bytes(Source(path))
    sources = {"base": Source(path), "antiexpert": Source(path), "tuned:x": Source("nobody/nothing")}
    with caplog.at_level(logging.INFO):
        memory.check_memory(sources)
    assert f"weights on cpu: about {one / 1e6:.1f} MB" in caplog.text
    assert "unknown size before loading: tuned:x" in caplog.text


def test_a_family_that_cannot_fit_is_refused_before_loading(family_folders, monkeypatch):
    spec = FamilySpec(str(family_folders["base"]), str(family_folders["antiexpert"]))
    needed = sum(memory.weight_bytes(source) for source in spec.sources.values())
    monkeypatch.setattr(memory, "_available", lambda device: needed)
    load(spec)
    monkeypatch.setattr(memory, "_available", lambda device: needed - 1)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    with pytest.raises(UserError, match=r"weights need about .* on cpu.*base .*, antiexpert .*device_map=auto"):
        load(spec)


def test_what_is_available_is_what_the_system_says():
    assert 0 < memory._available("cpu") <= psutil.virtual_memory().total + psutil.swap_memory().total
