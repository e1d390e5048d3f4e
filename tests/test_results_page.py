"""The commands of docs/results.md, one after the other."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pandas as pd

from proxytune.cli import main

PAGE = (Path(__file__).parents[1] / "docs" / "results.md").read_text()
COMMANDS = re.findall(r"^proxytune (.*?)(?:  +#.*)?$", PAGE, re.MULTILINE)


def test_every_command_works_on_a_real_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    assert [command.split()[0] for command in COMMANDS] == ["run", "report", "figures", "analyze", "runs"]
    for command in COMMANDS:
        smaller = ["limit=4", "store=null"] if command.startswith("run ") else []
        assert main([*shlex.split(command), *smaller]) == 0, command
    printed = capsys.readouterr().out
    assert "Most influenced tokens" in printed and "Report: outputs/look/report.html" in printed
    assert list(Path("outputs/look/figures").glob("*.svg"))
    [python] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert {"p_fused", "p_base", "differs"} <= set(eval(python, {"pandas": pd}).columns)
