"""Reading shared keys where they are: the bits of transformers' own attention, and nothing of it in saved folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch

from proxytune.compat.transformers import GROUPED
from proxytune.models import FamilySpec, Source, load


@pytest.fixture
def folder(tmp_path) -> Path:
    tokenizer = tiny.tiny_tokenizer()
    tiny.tiny_llama(len(tokenizer), seed=0, hidden=48, heads=6, kv_heads=2).save_pretrained(tmp_path / "grouped")
    tokenizer.save_pretrained(tmp_path / "grouped")
    return tmp_path / "grouped"


def member(folder: Path, dtype: str, attention: str | None):
    return load(FamilySpec(Source(str(folder), dtype=dtype, attn_implementation=attention)))["base"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_of_unlike_lengths_get_the_bits_of_the_attention_that_copies(folder, dtype):
    tokens = torch.randint(5, 300, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1] * 9, [0] * 4 + [1] * 5, [0] * 8 + [1]])
    read = {}
    for attention in (None, "sdpa"):
        base = member(folder, dtype, attention)
        assert base.model.config._attn_implementation == (attention or GROUPED)
        state = base.start(3)
        read[attention] = [base.read(state, tokens, mask)]
        read[attention] += [base.read(state, tokens[:, i : i + 1]) for i in range(3)]
    for shared, copied in zip(read[None], read["sdpa"], strict=True):
        assert shared.equal(copied)


def test_a_saved_model_does_not_name_it(folder, tmp_path):
    member(folder, "float32", None).model.save_pretrained(tmp_path / "saved")
    assert GROUPED not in json.dumps(json.loads((tmp_path / "saved" / "config.json").read_text()))
