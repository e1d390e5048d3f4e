"""Every test runs offline, on one thread, from a fixed seed."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import absl.logging
import pytest
import torch
from tiny import save_adapter_family, save_family, tiny_adapter_family, tiny_family

from proxytune.models.ensemble import Ensemble

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
# rouge-score's absl handler closes its stream when logging is set up anew; it must not hold pytest's capture.
absl.logging.get_absl_handler().python_handler.stream = sys.__stderr__


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's own cache of answers and miniatures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROXYTUNE_CACHE", str(tmp_path_factory.mktemp("proxytune-cache")))
        yield


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """The command sets up logging anew; its handlers end with the test, whose captured streams they hold."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.fixture(scope="session")
def family() -> Ensemble:
    """base, antiexpert, experts "math" (Llama) and "trivia" (GPT-2), and their tuned models. Do not change it."""
    return tiny_family()


@pytest.fixture(scope="session")
def adapter_family() -> Ensemble:
    """base, antiexpert and two LoRA experts over the antiexpert's one module. Do not change it."""
    return tiny_adapter_family()


@pytest.fixture(scope="session")
def family_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny family as folders: {role: path}. Do not write into them."""
    return save_family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="session")
def adapter_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny adapter family as folders: {role: path}. Do not write into them."""
    return save_adapter_family(tmp_path_factory.mktemp("adapters"))
