"""`proxytune train`: tunes experts and the directly tuned large model on a task's training split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from pydantic import ValidationError

from proxytune.cli import application, build, schema
from proxytune.errors import UserError, unknown_name

ROLES = {"experts": "antiexpert", "tuned": "base"}
"""What is trained -> the member of the family that it starts from."""


class TrainConfig(schema.Strict):
    """`conf/train.yaml` without its models."""

    task: schema.TaskConfig
    """a file of conf/task"""
    training: dict[str, Any]
    """a file of conf/training"""
    which: Literal["experts", "tuned", "all"]
    """experts (over the antiexpert), tuned (over the base) or all"""
    output: str
    """a folder for the trained models"""


def main(arguments: Sequence[str]) -> int:
    """`proxytune train [overrides] [Hydra flags]`; raises UserError for the user's mistakes."""
    return application.compose_and_run("train", check, work, *application.split(arguments))


def check(config: DictConfig) -> tuple[TrainConfig, dict[str, Any], Any]:
    """The settings, (what, source) to start from and the recipe; raises UserError for what is wrong by itself."""
    settings = _settings(config)
    starts = dict(_starts(config, settings.which))
    build.check_targets(settings.training, "training")
    try:
        return settings, starts, build.build(settings.training)
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error


def work(config: DictConfig, output_dir: Path) -> None:
    """Trains what `config` names and prints where each model is; everything is checked before the first one loads."""
    settings, starts, tuning = check(config)

    from proxytune.models import Source
    from proxytune.models.loading import load_for_tuning
    from proxytune.tasks import full_names, load_task, task_info, training_examples
    from proxytune.training import tune

    sources = {what: Source.of(start, f"models.{ROLES[what]}") for what, start in starts.items()}
    names = full_names(settings.task.names, settings.task.style)
    examples = {name: training_examples(name, settings.task.data_dir) for name in names}
    for what, source in sources.items():
        for name, pairs in examples.items():
            expert = task_info(load_task(name, settings.task.data_dir)).expert or name
            model, tokenizer = load_for_tuning(ROLES[what], source)
            folder = output_dir / what / expert
            card = tune(model, tokenizer, pairs, folder, tuning)
            print(f"{what} {expert}: {card['steps']} steps, mean loss {card['mean_loss']:.3f}: {folder}")


def _settings(config: DictConfig) -> TrainConfig:
    parts = OmegaConf.create({key: node for key, node in config.items_ex(resolve=False) if key != "models"})
    values = schema.resolve(parts)
    for key in values:
        if key not in TrainConfig.model_fields:
            raise unknown_name("key", key, [*TrainConfig.model_fields, "models"])
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(map(str, fault["loc"]))
        raise UserError(f"{key}={fault['input']} is not allowed: {fault['msg']}") from error


def _starts(config: DictConfig, which: str) -> Iterator[tuple[str, str | Mapping[str, Any]]]:
    """(what, source) to start from. Only these parts of the family are resolved: its experts need not exist yet."""
    for what in ROLES if which == "all" else (which,):
        role = ROLES[what]
        if OmegaConf.select(config, f"models.{role}") is None:
            raise UserError(f"models.{role} is missing: training {what} starts from it")
        for key in sorted(OmegaConf.missing_keys(config)):
            if key.startswith(f"models.{role}."):
                raise UserError(f"{key} has no value yet: give {key}=...")
        part = OmegaConf.masked_copy(config.models, [role])
        part._set_parent(config)
        yield what, schema.resolve(part)[role]
