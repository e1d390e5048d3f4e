"""The models of a configuration, for commands that need only some members: the others need not exist yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from proxytune import validation
from proxytune.cli import schema

if TYPE_CHECKING:
    from proxytune.models import FamilySpec

T = TypeVar("T")
FAMILY = "proxytune.models.FamilySpec"
"""The target of models that a configuration describes one by one; others are made by a function (the miniature)."""
MEMBERS = {"base", "antiexpert", "experts", "tuned"}


def describes_members(config: DictConfig) -> bool:
    """Whether the configuration's `models` says where each of its members is."""
    return OmegaConf.select(config, "models._target_") == FAMILY


def only(config: DictConfig, *names: str) -> dict[str, Any]:
    """`models` with only these members; raises UserError for a missing value of theirs."""
    return schema.plain_values(config.models, without=MEMBERS - set(names))


def settings(kind: type[T], config: DictConfig, needed: Callable[[DictConfig], dict[str, Any]]) -> T:
    """The configuration as a `kind`, with what is `needed` of models that it describes; raises UserError."""
    if describes_members(config):
        values = schema.plain_values(config, without=["models"]) | {"models": needed(config)}
    else:
        values = schema.plain_values(config, without=["miniature"])  # models=miniature is made of it, and refers to it
    return validation.check(kind, values)


def overrides(config: DictConfig, family: FamilySpec) -> list[str]:
    """The overrides that describe `family`, so that a member can be added; none if `models` describes its members."""
    if describes_members(config):
        return []
    small = None if family.antiexpert is None else family.antiexpert.path
    paths = {
        "models.base.path": family.weights("base").path,
        "models.antiexpert.path": small,
        "task.data_dir": OmegaConf.select(config, "task.data_dir") or family.data_dir,
    }
    return ["models=local", *(f"{key}={path}" for key, path in paths.items() if path is not None)]
