"""`proxytune doctor`: one screen about this machine, whatever is or is not there."""

from __future__ import annotations

import os
import sqlite3
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch
from test_light_imports import HEAVY, _imported

from proxytune import provenance
from proxytune.cli import doctor, main
from proxytune.engines.requests import Scored
from proxytune.experiment.answers.store import AnswerStore

SMI = "#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 79500 MiB, 81559 MiB'\n"


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROXYTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))


def said(capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["doctor"]) == 0
    return capsys.readouterr().out


def test_one_screen_names_versions_memory_and_caches(tmp_path: Path, capsys):
    with AnswerStore(tmp_path / "cache" / "answers.sqlite") as answers:
        answers.put({"a": Scored((-1.0,), (True,), ()), "b": Scored((-2.0,), (True,), ())})
    shown = said(capsys)
    assert len(shown.splitlines()) <= 24
    for text in (f"torch {version('torch')}", "python ", "GB available", "answers.sqlite: 2 answers", str(tmp_path)):
        assert text in shown


def test_a_new_machine_has_no_cache_and_no_gpu(capsys):
    shown = said(capsys)
    assert "cache: not there yet" in shown and "no answers stored yet" in shown and "none (nvidia-smi" in shown


def test_a_damaged_store_is_said(tmp_path: Path, capsys):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "answers.sqlite").write_text("no database" * 100)
    assert "answers.sqlite cannot be read: file is not a database" in said(capsys)


def test_the_store_is_not_written(tmp_path: Path, capsys):
    path = tmp_path / "cache" / "answers.sqlite"
    path.parent.mkdir()
    sqlite3.connect(path).close()
    path.write_bytes(b"")
    assert "cannot be read: no such table: answers" in said(capsys)
    assert path.read_bytes() == b""


def test_gpus_that_torch_cannot_use_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    (tmp_path / "nvidia-smi").write_text(SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    for usable in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda usable=usable: usable)
        shown = said(capsys)
        assert "NVIDIA H100 80GB HBM3, 79500 MiB of 81559 MiB free" in shown
        assert ("cannot use them" in shown) is not usable


def test_what_an_extra_lacks_is_named_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(
        doctor,
        "requires",
        lambda _: ["torch>=2", "pytest; extra == 'one'", "rich>=3 ; extra == 'one'", 'no-such[x]<1; extra == "two"'],
    )
    shown = said(capsys)
    assert "one: installed" in shown and "two: without no-such: pip install 'proxytune[two]'" in shown


def test_it_works_where_nothing_is_installed(monkeypatch: pytest.MonkeyPatch, capsys):
    def nothing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(provenance, "version", nothing)
    monkeypatch.setattr(doctor, "requires", nothing)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", None)
    shown = said(capsys)
    for text in ("torch is missing", "huggingface-hub is missing", "proxytune is not installed as a package"):
        assert text in shown


def test_no_heavy_package_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert os.environ["PATH"] == str(tmp_path)  # no nvidia-smi: torch need not be asked
    assert not HEAVY & _imported(tmp_path, "doctor")


def test_arguments_are_a_mistake(capsys):
    assert main(["doctor", "seed=0"]) == 1
    assert capsys.readouterr().err == "proxytune: proxytune doctor takes no arguments, and was given seed=0\n"
