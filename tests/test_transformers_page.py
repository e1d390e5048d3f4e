"""What docs/transformers.md shows works, and what its table of modes names is tested."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from proxytune import FusedCausalLM, miniature
from proxytune.folders import config_dir

HERE = Path(__file__).parent
PAGE = (HERE.parent / "docs" / "transformers.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
MODES = PAGE.partition("## Generating")[2].partition("## Evaluating")[0]
TESTS = "".join(
    (HERE / f"test_{name}.py").read_text()
    for name in ("generate_modes", "fused", "fused_face", "fused_in_transformers")
)


def test_the_examples_run_one_after_the_other(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    tiny = OmegaConf.to_container(OmegaConf.load(config_dir() / "miniature" / "tiny.yaml"))
    build = miniature.family
    monkeypatch.setattr(miniature, "family", lambda: build(tiny))
    names: dict = {}
    for language, code in BLOCKS:
        assert language == "python"
        exec(code, names)
    said = capsys.readouterr().out
    assert "question : what is the capital of" in said and float(said.splitlines()[-1]) > 0
    assert isinstance(names["model"], FusedCausalLM) and str(names["model"].dtype) == "torch.bfloat16"


@pytest.mark.parametrize("option", sorted(set(re.findall(r"`([a-z]+_[a-z_]+)[=`]", MODES))))
def test_the_options_in_the_table_of_modes_are_tested(option):
    assert re.search(rf"\b{option}\b", TESTS)
