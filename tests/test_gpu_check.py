"""The check of a GPU at toy size on a CPU: all sections work, one that fails is reported, and JSON is written."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "gpu_check.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module
    spec.loader.exec_module(module)
    return module


def test_every_section_gives_times_and_equal_answers(script, tmp_path):
    file = tmp_path / "check.json"
    rows = script.main(["--toy", "--json", str(file)])
    assert json.loads(file.read_text(encoding="utf-8")) == rows
    assert {row["section"] for row in rows} == {"bandwidth", *script.USUAL}
    assert not [row for row in rows if "FAILED" in row["what"] or "left out" in row["what"]]
    found = {(row["section"], row["what"]): row for row in rows if row.get("batch", 1) == 1}
    for name in ("graphs: base", "graphs: fused, MatchKL", "eager: fused", "graphs: speculated at 0.8"):
        row = found["large_1b", name]
        assert row["min_ms"] <= row["median_ms"] <= row["max_ms"] and row["of_base"] > 0
    assert found["answers", "float32, static and graphs"]["equal"] == 1.0
    assert found["training", "bfloat16, FSDP"]["last_loss"] < found["training", "bfloat16, FSDP"]["first_loss"]


def test_a_section_that_fails_is_reported_and_the_others_go_on(script, monkeypatch, capsys):
    def broken(*_):
        yield {"what": "before"}
        raise RuntimeError("no such kernel\nmore")

    monkeypatch.setitem(script.SECTIONS, "engine", broken)
    rows = script.main(["--toy", "--only", "engine", "match_kl"])
    assert "FAILED: RuntimeError: no such kernel" in [row["what"] for row in rows]
    assert any(row["section"] == "match_kl" and "median_ms" in row for row in rows)
    assert "FAILED" in capsys.readouterr().out


def test_no_section_begins_without_time(script):
    assert script.main(["--toy", "--only", "answers", "--seconds", "1"])[1]["what"] == "left out: no time"


@pytest.mark.parametrize("acceptance", [0.6, 0.8, 0.9])
@pytest.mark.parametrize("drafts", [1, 4, 7])
def test_as_many_drafts_are_right_as_the_acceptance_says(script, acceptance, drafts):
    cycles = 2000
    mean = sum(script.accepted(cycle, drafts, acceptance) for cycle in range(cycles)) / cycles
    assert math.isclose(mean, sum(acceptance**i for i in range(1, drafts + 1)), rel_tol=0.01)
