"""The commands of docs/sweeps.md, docs/clusters.md and docs/export.md."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pandas
import pytest

from proxytune.cli import main

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^```\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[list[str]]:
    """The words after `proxytune`, of each command in a block of the page."""
    text = "\n".join(BLOCK.findall((DOCS / page).read_text())).replace("\\\n", " ")
    lines = [line.partition("  #")[0] for line in text.splitlines() if line.startswith("proxytune ")]
    return [shlex.split(line)[1:] for line in lines]


RUNS = [words for page in ("sweeps.md", "clusters.md") for words in commands(page) if words[0] == "run"]


@pytest.mark.parametrize("words", [words for words in RUNS if words[-1] != "..."], ids=" ".join)
def test_runs_and_sweeps_compose(words: list[str], monkeypatch: pytest.MonkeyPatch, capfd):
    """Hydra prints no sweep: its first job."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if any("ray" in word for word in words) and importlib.util.find_spec("hydra_plugins.hydra_ray_launcher") is None:
        pytest.skip("hydra_ray_launcher is missing: pip install 'proxytune[ray]'")
    first = [re.sub(r"interval\((.*?),.*\)", r"\1", word).partition(",")[0] for word in words if word != "-m"]
    assert main([*first, "--cfg", "all"]) == 0
    assert "_target_" in capfd.readouterr().out


def test_exports_and_the_look_with_pandas_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    run, *exports = commands("export.md")
    assert main([*run, "only=[base,proxy]", "report=false", "store=null"]) == 0
    assert {words[0] for words in exports} == {"export"} and len(exports) == 4
    for words in exports:
        assert main(words) == 0
    [python] = re.findall(r"```python\n(.*?)```", (DOCS / "export.md").read_text(), re.DOTALL)
    *statements, last = python.splitlines()
    names = {"pandas": pandas}
    exec("\n".join(statements), names)
    assert set(eval(last, names).columns) == {"base", "proxy"}
    assert list(Path("runs/tiny/inspect").glob("*.json")) and Path("items.csv").stat().st_size > 0


def test_what_is_compared_and_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ["miniature=tiny", "task.names=[miniature_gsm]", "only=[base]", "report=false", "tags=[first]"]
    for name in ("a", "b"):
        assert main(["run", *small, f"limit={2 if name == 'a' else 3}", f"output=outputs/{name}"]) == 0
    others = [words for words in commands("sweeps.md") if words[0] != "run"]
    assert [words[:2] for words in others] == [["compare", "outputs/a"], ["runs", "list"]]
    for words in others:
        assert main(["task=miniature" if word == "task=gsm8k" else word for word in words]) == 0
    assert "outputs/b" in capsys.readouterr().out
