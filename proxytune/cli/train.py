"""`proxytune train`: tunes experts and the directly tuned large model on a task's training split."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from omegaconf import DictConfig, OmegaConf

from proxytune import validation
from proxytune.cli import build, schema
from proxytune.cli.application import Command
from proxytune.cli.ending import resume_hint
from proxytune.errors import UserError
from proxytune.validation import FilePath, Strict

if TYPE_CHECKING:
    from proxytune.models import FamilySpec, Source
    from proxytune.training import Recipe, Tuning

log = logging.getLogger(__name__)

ROLES = {"experts": "antiexpert", "tuned": "base"}
"""What is trained -> the member of the family that it starts from."""
MULTITASK = "multitask"
"""The name of the model that is trained on the examples of all tasks."""
Pairs = list[tuple[str, str]]
"""Prompts and answers."""


class TrainConfig(Strict):
    """`conf/train.yaml`."""

    models: dict[str, Any]
    """a file of conf/models, of which the experts and tuned models are left out"""

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


class Job(NamedTuple):
    """One model to train."""

    what: str
    """experts or tuned."""
    name: str
    source: Source
    recipe: Recipe
    folder: Path


def main(arguments: Sequence[str]) -> int:
    """`proxytune train [overrides] [Hydra flags]`; raises UserError for the user's mistakes."""
    return Command("train", check, work).main(arguments)


def check(config: DictConfig) -> tuple[TrainConfig, Tuning]:
    """The settings and the tuning; raises UserError for what is wrong by itself."""
    settings = _settings(config)
    build.check_targets(settings.training, "training")
    build.check_targets(settings.models, "models")
    tuning = build.build(settings.training)
    tuning.accumulation(int(os.environ.get("WORLD_SIZE", "1")))
    return settings, tuning


def work(config: DictConfig, output_dir: Path) -> None:
    """Trains what `config` names and says where each model is; everything is checked before the first one loads."""
    settings, tuning = check(config)

    from proxytune.training.folder import finished

    family = build.build(settings.models)
    jobs = list(_jobs(settings, family, tuning, output_dir))
    done = [finished(job.folder, job.recipe) for job in jobs]
    _check_memory([job for job, card in zip(jobs, done, strict=True) if card is None])
    lines = []
    for job, card in zip(jobs, done, strict=True):
        with resume_hint(str(output_dir)):
            lines.append(f"{job.what} {job.name}: {_tuned(job) if card is None else _said('already trained', card)}")
        _remember(job)
    if os.environ.get("RANK", "0") == "0":  # one of several processes speaks
        for line, job in zip(lines, jobs, strict=True):
            print(f"{line}: {job.folder}")
        print("for proxytune run:", *build.beside(config, family), *_usage(jobs, config))


def _jobs(settings: TrainConfig, family: FamilySpec, tuning: Tuning, output_dir: Path) -> Iterator[Job]:
    from proxytune.models import identity
    from proxytune.models.loading.load import check_tunable
    from proxytune.training import Recipe

    sources = {what: family.sources[ROLES[what]] for what in _trained(settings.which)}
    for what, source in sources.items():
        check_tunable(ROLES[what], source)
    examples = _examples(settings.task, settings.multitask, settings.task.data_dir or family.data_dir)
    for what, source in sources.items():
        for name, pairs in examples.items():
            yield Job(what, name, source, Recipe(tuning, pairs, identity(source)), output_dir / what / name)


def _examples(tasks: schema.TaskConfig, multitask: bool, data_dir: str | None) -> dict[str, Pairs]:
    """The training examples of each model by its name: that of the expert that belongs to the task."""
    from proxytune.tasks import brought_by_family, find, full_names, training_examples

    found: dict[str, Pairs] = {}
    for task in full_names(tasks.names, tasks.style):
        with brought_by_family(task, None if tasks.data_dir else data_dir):
            pairs = training_examples(task, data_dir)
        name = find(task).extras.expert or task
        if multitask:
            found.setdefault(MULTITASK, []).extend(pairs)
        elif name in found:
            raise UserError(f"several of the tasks train {name!r}: name one of them, or give multitask=true")
        else:
            found[name] = pairs
    return found


def _check_memory(jobs: Sequence[Job]) -> None:
    from proxytune.models.loading.memory import check_training_memory

    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        return  # no device holds all of it
    for job in {job.what: job for job in jobs}.values():
        tuning = job.recipe.tuning
        check_training_memory(job.what, job.source, tuning.lora_rank if tuning.method == "lora" else None)


def _tuned(job: Job) -> str:
    """Trains one model and says what came of it."""
    from proxytune.console import loading_bars
    from proxytune.engines.hf.batching import is_out_of_memory
    from proxytune.models.loading.load import load_for_tuning
    from proxytune.provenance import code_facts, library_versions
    from proxytune.training import tune

    provenance = {"code": code_facts(), "libraries": library_versions() | {"trl": version("trl")}}
    recipe = job.recipe
    try:
        with loading_bars():
            model, tokenizer = load_for_tuning(ROLES[job.what], job.source)
            card = tune(model, tokenizer, recipe.examples, job.folder, recipe.tuning, recipe.start, provenance)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"{job.what} {job.name}: out of memory with training.device_batch={recipe.tuning.device_batch}; the same "
            "command goes on with a smaller one or with training.gradient_checkpointing=true"
        ) from error
    return _said("trained", card)


def _said(verb: str, card: Mapping[str, Any]) -> str:
    left_out = f", {card['examples_left_out']} longer ones left out" if card["examples_left_out"] else ""
    return (
        f"{verb}, {card['steps']} steps of {card['tuning']['batch']} on {card['examples']} examples{left_out}, "
        f"mean loss {card['mean_loss']:.3f}, {card['seconds']:.0f} s, {card['tokens_per_second']:.0f} tokens/s"
    )


def _remember(job: Job) -> None:
    """Notes how `trained:<hash>` is loaded; that it can't be noted takes nothing from the model."""
    from proxytune.models import trained

    start, folder = job.source.module, str(job.folder.resolve())
    if job.recipe.tuning.method == "full":
        source = {"path": folder}
    else:
        # The number type too, so that the expert and the antiexpert are one module.
        fields = ("path", "revision", "gguf_file", "dtype")
        source = {name: getattr(start, name) for name in fields if getattr(start, name) is not None}
        source["adapter"] = folder
    try:
        trained.remember(job.recipe.hash, job.folder, source)
    except UserError as error:
        log.warning("%s cannot be found by its hash: %s", job.folder, error)


def _usage(jobs: Sequence[Job], config: DictConfig) -> Iterator[str]:
    """What to add to `proxytune run` so that it uses the models."""
    for job in jobs:
        key = f"models.{job.what}.{job.name}"
        node = OmegaConf.select(config, key)
        # Among the keys, because `in` does not see one whose value is ???.
        if isinstance(node, DictConfig) and "adapter" in list(node.keys()) and job.recipe.tuning.method == "lora":
            yield f"{key}.adapter={job.folder}"
        else:
            if node is not None:
                yield f"~{key}"
            yield f"++{key}.path=trained:{job.recipe.hash}"


def _settings(config: DictConfig) -> TrainConfig:
    values = build.resolved(config, TrainConfig.model_fields, _starts)
    return validation.check(TrainConfig, values)


def _trained(which: str) -> tuple[str, ...]:
    return tuple(ROLES) if which == "all" else (which,)


def _starts(config: DictConfig) -> dict[str, Any]:
    """The family without what is to be trained, or is not started from: it need not exist yet."""
    roles = [ROLES[what] for what in _trained(config.which) if what in ROLES]
    for role in roles:
        if OmegaConf.select(config, f"models.{role}") is None:
            raise UserError(f"models.{role} is missing: training starts from it")
        for key in sorted(OmegaConf.missing_keys(config)):
            if key.startswith(f"models.{role}."):
                raise UserError(f"{key} has no value yet: give {key}=...")
    models = build.members(config, *roles)
    if "base" not in roles and roles:
        models["base"] = models[roles[0]]  # a family has one
    return models
