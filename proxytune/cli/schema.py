"""What `proxytune run` may be told: names, types and ranges of the configuration, checked before anything loads."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue
from pydantic import ConfigDict, Field

from proxytune import validation
from proxytune.errors import UserError, unknown_name
from proxytune.validation import FilePath, Strict


class TaskConfig(Strict):
    """`conf/task`."""

    names: list[str] = Field(min_length=1)
    """a list of at least one task name"""
    style: str | None = None
    """liu2024, fan2024 or lm_eval: whose prompts and metrics; null: the names stand for themselves"""
    data_dir: FilePath | None = None
    """a folder of JSON-lines files; null: the model family's own data, or the hub"""


class ArmConfig(Strict):
    """An arm: a mapping with a model, or with a rule and experts. One entry of `conf/arms`."""

    model: str | None = None
    """base, antiexpert, expert, tuned, each_expert or a role such as expert:gsm8k"""
    rule: dict[str, Any] | None = None
    """a fusion rule: a mapping with _target_, or a file of conf/fusion by +fusion@arms.<arm>.rule=<file>"""
    experts: Literal["own", "all"] | list[str] | None = None
    """own (the expert that belongs to the task), all, or a list of expert names"""
    without: list[str] | None = Field(None, alias="except", min_length=1)
    """a list of expert names left out of `all` and `each_expert`"""


class EngineConfig(Strict):
    """`conf/engine`. Other engines have keys of their own, which are checked with their `_target_`."""

    model_config = ConfigDict(extra="allow")

    target: str = Field(alias="_target_")
    """an engine's class"""
    batch_size: int | None = Field(None, ge=1)
    """an integer from 1 (requests worked on together), or null for the engine's own choice"""


class RunConfig(Strict):
    """`conf/run.yaml` with its groups; every field is a key of the command line."""

    models: dict[str, Any]
    """a file of conf/models, or a mapping with _target_"""
    task: TaskConfig
    """a file of conf/task, or a mapping with names and data_dir"""
    arms: dict[str, ArmConfig] = Field(min_length=1)
    """a mapping from at least one arm's name to what it is (conf/arms)"""
    engine: EngineConfig
    """a file of conf/engine, or a mapping with _target_"""
    miniature: dict[str, Any] | None = None
    """a file of conf/miniature; has an effect with models=miniature only"""
    seed: int = Field(ge=0)
    """an integer from 0"""
    limit: int | None = Field(ge=1)
    """an integer from 1 (the first items of each task only), or null for all items"""
    num_fewshot: int | None = Field(ge=0)
    """an integer from 0 (examples in each prompt), or null for each task's own number"""
    only: list[str] | None = Field(min_length=1)
    """a list of at least one arm's name, or null for all arms"""
    output: FilePath
    """a folder for the results; a sweep makes one folder per job in it"""
    store: FilePath | None
    """a file of finished answers, which a later run goes on from; null: keep none"""
    allow_targets: list[str]
    """a list of packages beside proxytune that _target_ may name"""


def check(values: Mapping[str, Any]) -> RunConfig:
    """The resolved configuration with every key, type and range checked; raises UserError for the first fault."""
    checked = validation.check(RunConfig, values)
    for name, arm in checked.arms.items():
        _check_arm(name, arm)
    _check_together(checked)
    return checked


def resolve(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain values, interpolations replaced; raises UserError for a value that is missing."""
    try:
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key} has no value yet: give {error.full_key}=...") from error
    except InterpolationResolutionError as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    assert isinstance(values, dict)
    return values  # type: ignore[return-value]


def _check_together(config: RunConfig) -> None:
    """Raises UserError for values that others make wrong or useless."""
    for name in config.only or ():
        if name not in config.arms:
            raise unknown_name("arm in only", name, config.arms)
    for package in config.allow_targets:
        if package.partition(".")[0] in sys.stdlib_module_names:
            raise UserError(f"allow_targets={package} is not allowed: name a package of your own, not Python's library")
    if config.miniature is not None and str(config.models.get("_target_")).startswith("proxytune.models."):
        raise UserError("miniature has no effect on these models: remove its keys, or give models=miniature")


def _check_arm(name: str, arm: ArmConfig) -> None:
    key = f"arms.{name}"
    if (arm.model is None) == (arm.rule is None):
        raise UserError(f"{key} needs either a model (one model alone) or a rule (with experts), and not both")
    if arm.model is not None and arm.experts is not None:
        raise UserError(f"{key}.experts has no effect on a model alone: remove it, or give a rule, not a model")
    if arm.experts == []:
        raise UserError(f"{key}.experts=[] is empty, but a rule needs at least one expert: own, all or a list of names")
    if arm.rule is not None and "_target_" not in arm.rule:
        raise UserError(f"{key}.rule has no _target_: it is {ArmConfig.model_fields['rule'].description}")
