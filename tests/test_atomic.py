"""Files and folders are complete or absent, whatever happens to the process or the disk."""

import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from proxytune.atomic import atomic_folder, atomic_write, partial_path, write_json, write_jsonl
from proxytune.errors import UserError


@pytest.fixture
def dead() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_file_is_replaced_whole_or_stays_as_it_was(tmp_path):
    with atomic_write(tmp_path / "new" / "a") as file:
        file.write("first")
    with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "new" / "a") as file:
        file.write("second")
        raise ZeroDivisionError
    assert [(path.name, path.read_text()) for path in (tmp_path / "new").iterdir()] == [("a", "first")]


def test_partial_files_of_dead_processes_are_removed_and_those_of_others_kept(tmp_path, dead):
    own = partial_path(tmp_path / "a[1]").name
    prefix = own.removesuffix(str(os.getpid()))
    assert socket.gethostname() in prefix
    gone = [f"{prefix}{dead}", own]
    kept = [
        f"{prefix}{os.getppid()}",  # alive
        prefix.replace(socket.gethostname(), "elsewhere") + str(dead),  # who knows
        prefix.replace("a[1]", "a") + str(dead),  # another file's
    ]
    for name in gone[1:] + kept[:1]:
        (tmp_path / name).write_text("half")
    for name in gone[:1] + kept[1:]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("")
    with atomic_write(tmp_path / "a[1]") as file:
        file.write("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["a[1]", *kept])


def test_a_folder_that_a_killed_build_left_is_removed_by_the_next(tmp_path, dead):
    left = tmp_path / partial_path(tmp_path / "model").name.replace(str(os.getpid()), str(dead))
    left.mkdir()
    (left / "half").write_text("")
    atomic_folder(tmp_path / "model", lambda folder: (folder / "whole").write_text(""))
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["model", "model/whole"]


@pytest.fixture
def little_room() -> Iterator[None]:
    """While the test runs, no file may grow beyond 100 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_weights_on_a_full_disk_are_one_clear_line(tmp_path, little_room):
    with pytest.raises(UserError, match=r"cannot write .*model \(.*File too large.*make room"):
        atomic_folder(
            tmp_path / "model", lambda folder: save_file({"weight": torch.zeros(100_000)}, folder / "model.safetensors")
        )
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_another_process_finished_first_stays(tmp_path):
    def write(folder):
        (folder / "mine").write_text("")
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "theirs").write_text("")

    atomic_folder(tmp_path / "model", write)
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "theirs"]


def test_a_bug_in_what_fills_a_folder_is_not_taken_for_a_full_disk(tmp_path):
    def write(folder):
        (tmp_path / "model").mkdir()
        raise KeyError("bug")

    with pytest.raises(KeyError, match="bug"):
        atomic_folder(tmp_path / "model", write)


def test_json_has_null_for_undefined_numbers_and_plain_values_for_others(tmp_path):
    record = {
        "nan": np.float32("nan"),
        "inf": [-np.inf],
        3: np.int64(2),
        "set": {"b", "a"},
        "é": tmp_path,
        "t": (True, 0.5),
    }
    plain = {"nan": None, "inf": [None], "3": 2, "set": ["a", "b"], "é": str(tmp_path), "t": [True, 0.5]}
    write_json(tmp_path / "one.json", record)
    assert json.loads((tmp_path / "one.json").read_text()) == plain
    write_jsonl(tmp_path / "two.jsonl", [record, {}])
    first, second = (tmp_path / "two.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(first) == plain and second == "{}" and "é" in first
