"""`proxytune train`: tunes experts and the directly tuned large model on a task's training split."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omegaconf import DictConfig, OmegaConf

from proxytune.cli import build, family, schema
from proxytune.cli.application import Command, resume_hint
from proxytune.errors import UserError
from proxytune.training.recipe import STARTS
from proxytune.validation import FilePath, Strict

if TYPE_CHECKING:
    from proxytune.training import Tuning
    from proxytune.training.planned import Training

log = logging.getLogger(__name__)


class TrainConfig(Strict):
    """`conf/train.yaml`."""

    models: dict[str, Any]
    """a file of conf/models; its experts and tuned models are left out"""

    task: schema.TaskConfig
    """a file of conf/task"""
    training: dict[str, Any]
    """a file of conf/training"""
    which: Literal["experts", "tuned", "all"]
    """experts (over the antiexpert), tuned (over the base) or all"""
    multitask: bool
    """true: one model on the examples of all tasks; false: one model for each task"""
    output: FilePath
    """a folder for the trained models"""


def check(config: DictConfig) -> tuple[TrainConfig, Tuning]:
    """The settings and the tuning; raises UserError for what is wrong by itself."""
    settings = family.settings(TrainConfig, config, _starts)
    build.check_targets(settings.training, "training")
    build.check_targets(settings.models, "models")
    tuning = build.build(settings.training)
    tuning.accumulation(int(os.environ.get("WORLD_SIZE", "1")))
    return settings, tuning


def work(config: DictConfig, output_dir: Path) -> None:
    """Trains what `config` names and says where each model is; everything is checked before the first one loads."""
    settings, tuning = check(config)

    from proxytune.tasks import full_names
    from proxytune.training.planned import check_memory, examples_by_model, plan

    models, task = build.build(settings.models), settings.task
    tasks = full_names(task.names, task.style)
    examples = examples_by_model(tasks, settings.multitask, task.data_dir, models.data_dir)
    trainings = plan(models, _kinds(settings.which), examples, tuning, output_dir)
    cards = [training.finished() for training in trainings]
    check_memory([training for training, card in zip(trainings, cards, strict=True) if card is None])
    if None not in (tuning.epochs, tuning.max_steps):
        log.info("training.max_steps=%d decides: training.epochs has no effect", tuning.max_steps)
    lines, overrides = [], family.overrides(config, models)
    for training, card in zip(trainings, cards, strict=True):
        with resume_hint(str(output_dir)):
            done = training.run() if card is None else card
        training.remember(done["recipe"])
        verb = "trained" if card is None else "already trained"
        lines.append(f"{training.kind} {training.name}: {verb}, {_outcome(done)}: {training.folder}")
        overrides += _overrides(training, done["recipe"], config)
    if os.environ.get("RANK", "0") == "0":  # one of several processes prints
        print(*lines, sep="\n")
        print("for proxytune run:", *overrides)


def _outcome(card: Mapping[str, Any]) -> str:
    left_out = f", {card['examples_left_out']} longer ones left out" if card["examples_left_out"] else ""
    return (
        f"{card['steps']} steps of {card['tuning']['batch']} on {card['examples']} examples{left_out}, "
        f"mean loss {card['mean_loss']:.3f}, {card['seconds']:.0f} s, {card['tokens_per_second']:.0f} tokens/s"
    )


def _overrides(training: Training, recipe: str, config: DictConfig) -> Iterator[str]:
    """What to add to `proxytune run` so that it uses the model of the recipe with this hash."""
    key = f"models.{training.kind}.{training.name}"
    node = OmegaConf.select(config, key)
    # Among the keys, because `in` does not see one whose value is ???.
    if isinstance(node, DictConfig) and "adapter" in list(node.keys()) and training.recipe.tuning.method == "lora":
        yield f"{key}.adapter={training.folder}"
        return
    if node is not None:
        yield f"~{key}"
    yield f"++{key}.path=trained:{recipe}"


def _kinds(which: str) -> tuple[str, ...]:
    return tuple(STARTS) if which == "all" else (which,)


def _starts(config: DictConfig) -> dict[str, Any]:
    """The family without what is to be trained, or is not started from: it need not exist yet."""
    roles = [STARTS[kind] for kind in _kinds(config.which) if kind in STARTS]
    for role in roles:
        if OmegaConf.select(config, f"models.{role}") is None:
            raise UserError(f"models.{role} is missing: training starts from it")
    models = family.only(config, *roles)
    if "base" not in roles and roles:
        models["base"] = models[roles[0]]  # a family has one
    return models


main = Command("train", check, work).main
