"""Files and folders are whole or absent, whatever befalls the process or the disk."""

import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from safetensors.torch import save_file

from proxytune.atomic import atomic_folder, atomic_write, partial_path
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


def test_drafts_of_dead_processes_are_removed_and_those_of_others_kept(tmp_path, dead):
    draft = partial_path(tmp_path / "a[1]").name
    prefix = draft.removesuffix(str(os.getpid()))
    assert socket.gethostname() in prefix
    gone = [f"{prefix}{dead}", draft]
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
