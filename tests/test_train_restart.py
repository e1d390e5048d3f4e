"""Trainings that are killed at any moment, or find the disk full, and are started again: the weights do not change.

PROXYTUNE_KILLS=10 kills at ten random moments (default: 2), beside those that are chosen.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

from proxytune.errors import UserError
from proxytune.training import Recipe, Tuning, folder
from proxytune.training.sft import tune

FORKS = multiprocessing.get_context("forkserver")
# Processes are forked from one that has imported everything that takes long.
FORKS.set_forkserver_preload(
    ["pytest", "proxytune.training.trainer", "proxytune.models.ensemble", "transformers.models.llama.modeling_llama"]
)
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "the", "dog", "ran", "to", "a", "tree"]
EXAMPLES = [(" ".join(WORDS[: 3 + i % 5]), " " + " ".join(WORDS[i % 7 :])) for i in range(10)]
LORA = Tuning(
    epochs=3, batch=4, device_batch=2, learning_rate=0.01, lora_rank=4, lora_dropout=0.3, checkpoint_steps=2, seed=7
)
FULL = Tuning(method="full", epochs=3, batch=4, device_batch=2, learning_rate=0.01, checkpoint_steps=2)
KILLS = int(os.environ.get("PROXYTUNE_KILLS", "2"))


def train(where: Path, tuning: Tuning) -> dict:
    tokenizer = tiny.tiny_tokenizer()
    return tune(tiny.tiny_llama(len(tokenizer), seed=3), tokenizer, EXAMPLES, where, tuning)


def start(where: Path, tuning: Tuning, before: Callable[[], object] | None = None):
    """A training in a process of its own, which calls `before` first."""
    process = FORKS.Process(target=_start, args=(where, tuning, before))
    process.start()
    return process


def _start(where: Path, tuning: Tuning, before: Callable[[], object] | None) -> None:
    torch.set_num_threads(1)
    sys.stderr = sys.stdout = (where.parent / f"{where.name}.log").open("a")
    if before is not None:
        before()
    try:
        train(where, tuning)
    except UserError as error:
        print(f"UserError: {error}", flush=True)
        os._exit(1)


def weights(where: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in where.glob("*.safetensors")}


@pytest.fixture(scope="module", params=[LORA, FULL], ids=["lora", "full"])
def whole(request, tmp_path_factory) -> tuple[Tuning, dict[str, bytes], float]:
    """A tuning, the weights that it ends with undisturbed, and the seconds that its process takes."""
    where = tmp_path_factory.mktemp("whole") / "trained"
    start(where, request.param).join()
    began = time.perf_counter()
    again = where.with_name("again")
    start(again, request.param).join()
    assert weights(again) == weights(where) != {}
    return request.param, weights(where), time.perf_counter() - began


def kill_before_naming(step: int = 4) -> None:
    keep = folder.keep
    folder.keep = lambda draft, where: keep(draft, where) if draft.name != f"checkpoint-{step}" else _die()


def kill_after_naming(step: int = 4) -> None:
    keep = folder.keep
    folder.keep = lambda draft, where: (keep(draft, where), draft.name == f"checkpoint-{step}" and _die())


def kill_while_finishing() -> None:
    """After the second file of the model is in its place."""
    replace, moved = Path.replace, []

    def replace_and_count(file: Path, target: Path) -> None:
        replace(file, target)
        moved.extend([target] if target.parent.name == "trained" else [])
        if len(moved) == 2:
            _die()

    Path.replace = replace_and_count


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("moment", "kept"),
    [(kill_before_naming, "checkpoint-2"), (kill_after_naming, "checkpoint-4"), (kill_while_finishing, "checkpoint-9")],
)
def test_killed_at_the_worst_moments(whole, tmp_path, moment, kept):
    tuning, expected, _ = whole
    where = tmp_path / "trained"
    killed = start(where, tuning, moment)
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert folder.finished(where, recipe(tuning)) is None
    assert folder.begin(where, recipe(tuning)).name == kept
    again = start(where, tuning)
    again.join()
    assert again.exitcode == 0
    assert weights(where) == expected


@pytest.mark.parametrize("trial", range(KILLS))
def test_killed_at_a_random_moment(whole, tmp_path, trial):
    tuning, expected, seconds = whole
    where = tmp_path / "trained"
    delay = random.Random(trial).uniform(0, seconds)
    killed = start(where, tuning)
    time.sleep(delay)
    killed.kill()
    killed.join()
    start(where, tuning).join()
    assert weights(where) == expected, f"killed after {delay:.2f} s of {seconds:.2f}"


def test_what_is_left_is_a_plain_model_folder(tmp_path):
    train(tmp_path / "trained", LORA)
    names = {path.name for path in (tmp_path / "trained").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "recipe.json", "README.md"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
    assert folder.UNFINISHED not in names


def test_a_second_start_does_nothing(tmp_path):
    first = train(tmp_path / "trained", LORA)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "trained").iterdir()}
    assert train(tmp_path / "trained", LORA) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "trained").iterdir()} == before


def recipe(tuning: Tuning, examples=EXAMPLES, model: str = "") -> Recipe:
    return Recipe(tuning, examples, model)


@pytest.mark.parametrize("done", [True, False], ids=["finished", "unfinished"])
@pytest.mark.parametrize(
    ("other", "says"),
    [
        (recipe(FULL), "training.method was lora and is full"),
        (recipe(Tuning(**{**vars(LORA), "learning_rate": 0.02})), "training.learning_rate was 0.01 and is 0.02"),
        (recipe(LORA, EXAMPLES[:-1]), "the training examples differ"),
        (recipe(LORA, model="sha256:other"), "the model to start from differs"),
    ],
)
def test_another_recipe_is_refused(tmp_path, done, other, says):
    folder.begin(tmp_path, recipe(LORA))
    if done:
        (tmp_path / folder.UNFINISHED / folder.RECIPE).rename(tmp_path / folder.RECIPE)
    with pytest.raises(UserError, match="another output=") as error:
        folder.finished(tmp_path, other)
    assert says in str(error.value)


@pytest.mark.parametrize(
    "change", [{"checkpoint_steps": None}, {"device_batch": 4}, {"packing": True}, {"gradient_checkpointing": True}]
)
def test_what_has_no_effect_is_no_other_recipe(tmp_path, change):
    folder.begin(tmp_path, recipe(LORA))
    assert folder.finished(tmp_path, recipe(Tuning(**{**vars(LORA), **change}))) is None


def test_a_recipe_of_an_earlier_version_may_name_what_has_no_effect(tmp_path):
    folder.begin(tmp_path, recipe(LORA))
    note = tmp_path / folder.UNFINISHED / folder.RECIPE
    facts = json.loads(note.read_text())
    note.write_text(json.dumps(facts | {"tuning": facts["tuning"] | {"device_batch": 2}}))
    assert folder.finished(tmp_path, recipe(LORA)) is None


def test_a_training_goes_on_in_other_passes(tmp_path):
    """After it was out of memory, say: the steps are the same."""
    killed = start(tmp_path / "trained", FULL, kill_after_naming)
    killed.join()
    assert (tmp_path / "trained" / folder.UNFINISHED / "checkpoint-4").is_dir()
    train(tmp_path / "trained", Tuning(**{**vars(FULL), "device_batch": 1, "packing": True}))
    train(tmp_path / "whole", FULL)
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("trained", "whole"))
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-4)


def test_what_a_kill_after_the_last_file_left_goes(tmp_path):
    card = train(tmp_path / "trained", LORA)
    left = tmp_path / "trained" / folder.UNFINISHED / "checkpoint-9"
    left.mkdir(parents=True)
    (left / "optimizer.pt").touch()
    assert train(tmp_path / "trained", LORA) == card
    assert not left.parent.exists()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(28, "No space left on device"), "make room"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"), "make room"),
        (PermissionError(13, "Permission denied"), "fix its permissions"),
    ],
)
def test_what_cannot_be_written_is_said(tmp_path, error, says):
    with pytest.raises(UserError, match=rf"there is no checkpoint yet: {says}"), folder.writing(tmp_path):
        raise error


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("NCCL error")])
def test_what_is_not_about_files_is_not_called_so(tmp_path, error):
    with pytest.raises(type(error), match=str(error)), folder.writing(tmp_path):
        raise error


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_damaged_note_is_said(tmp_path, text):
    (tmp_path / "recipe.json").write_text(text)
    with pytest.raises(UserError, match=r"recipe\.json is damaged, or that of something else"):
        folder.finished(tmp_path, recipe(LORA))


def test_another_folder_is_not_written_into(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match="is not empty"):
        train(tmp_path, LORA)


def small_disk() -> None:
    """No file may grow beyond 40 kB after the first checkpoint, whose optimiser's state is larger."""
    keep = folder.keep

    def keep_and_fill(draft: Path, where: Path) -> None:
        keep(draft, where)
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))

    folder.keep = keep_and_fill


def test_a_full_disk_leaves_the_last_checkpoint(whole, tmp_path):
    tuning, expected, _ = whole
    where = tmp_path / "trained"
    full = start(where, tuning, small_disk)
    full.join()
    said = (tmp_path / "trained.log").read_text().splitlines()[-1]
    assert full.exitcode == 1
    assert said.startswith(f"UserError: cannot write into {where} (")
    assert "checkpoint-2 is intact: make room" in said
    assert not (where / folder.UNFINISHED / folder.DRAFT).exists()
    start(where, tuning).join()
    assert weights(where) == expected


def hold(where: Path) -> None:
    with folder.alone(where):
        (where.parent / "held").touch()
        time.sleep(100)


def test_a_folder_in_which_a_process_trains_is_left_to_it(tmp_path):
    holder = FORKS.Process(target=hold, args=(tmp_path / "model",))
    holder.start()
    try:
        while not (tmp_path / "held").exists():
            assert holder.is_alive()
            time.sleep(0.01)
        with pytest.raises(UserError, match=r"another process works in .*model: wait for it, or give another"):
            train(tmp_path / "model", LORA)
    finally:
        holder.kill()
        holder.join()
    assert train(tmp_path / "model", LORA)["steps"] == 9


KILLED = """
import sys
from pathlib import Path
from test_train_restart import kill_after_naming, train_thirteen

if sys.argv[2] == "killed":
    kill_after_naming(step=6)
train_thirteen(Path(sys.argv[1]))
"""


def train_thirteen(where: Path) -> None:
    """Four steps in each epoch, of which the last has one example: the second process has none of it."""
    tokenizer = tiny.tiny_tokenizer()
    tune(tiny.tiny_llama(len(tokenizer), seed=3), tokenizer, [*EXAMPLES, *EXAMPLES[:3]], where, FULL)


def test_two_processes_killed_in_the_second_epoch_go_on_with_its_order(tmp_path):
    (tmp_path / "killed.py").write_text(KILLED)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={tiny.free_port()}"]
    command += [str(tmp_path / "killed.py"), str(tmp_path / "pair")]
    killed = subprocess.run([*command, "killed"], capture_output=True, timeout=300, env=environment)
    assert killed.returncode != 0
    assert (tmp_path / "pair" / folder.UNFINISHED / "checkpoint-6").is_dir()
    subprocess.run([*command, "again"], check=True, capture_output=True, timeout=300, env=environment)
    train_thirteen(tmp_path / "alone")
    pair, alone = (load_file(tmp_path / name / "model.safetensors") for name in ("pair", "alone"))
    for name, weight in alone.items():
        torch.testing.assert_close(pair[name], weight, rtol=1e-3, atol=1e-4)
