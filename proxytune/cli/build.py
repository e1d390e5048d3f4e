"""Builds the parts that a configuration names by `_target_`, from this package and from others that the user lists."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from proxytune.cli import schema
from proxytune.compat.omegaconf import place_in
from proxytune.errors import UserError, unknown_name
from proxytune.experiment.arm_spec import ArmSpec

if TYPE_CHECKING:
    from proxytune.models import FamilySpec

RESERVED = {"_target_", "_partial_"}
"""Keys beside a target's own parameters."""
HOMES = {
    "models": ("proxytune.models", "proxytune.miniature"),
    "arms": ("proxytune.fusion",),
    "engine": ("proxytune.engines",),
    "training": ("proxytune.training",),
}
"""Where the parts of each key of a configuration are at home."""
ABILITIES = {"arms": ("fuse",), "engine": ("score", "generate")}
"""What the parts of a key must be able to do."""


FAMILY = "proxytune.models.FamilySpec"
"""The target of models that a configuration describes one by one; others are made by a function (the miniature)."""


def describes_members(config: DictConfig) -> bool:
    """Whether the configuration's `models` says where each of its members is."""
    return OmegaConf.select(config, "models._target_") == FAMILY


def members(config: DictConfig, *names: str) -> dict[str, Any]:
    """`models` with these members alone, resolved where it stands: the others need not exist, but may be named."""
    left_out = {"base", "antiexpert", "experts", "tuned"} - set(names)
    part = OmegaConf.masked_copy(config.models, [name for name in config.models if name not in left_out])
    place_in(part, config)
    return schema.resolve(part)


def resolved(
    config: DictConfig, fields: Collection[str], models: Callable[[DictConfig], dict[str, Any]]
) -> dict[str, Any]:
    """The configuration as plain values; `models` says what of a family that describes its members is wanted.

    Raises UserError for a value that is missing and for a key that is none of `fields`.
    """
    given = config.copy()
    OmegaConf.set_struct(given, False)
    if describes_members(config):
        given.models = models(config)
    values = schema.resolve(given)
    if not describes_members(config):
        values.pop("miniature", None)  # what models=miniature is made by, and refers to
    for key in values:
        if key not in fields:
            raise unknown_name("key", key, fields)
    return values


def beside(config: DictConfig, family: FamilySpec) -> list[str]:
    """The overrides beside which a member can be added to `family`: none if `models` describes its members."""
    if describes_members(config):
        return []
    small = None if family.antiexpert is None else family.antiexpert.path
    paths = {
        "models.base.path": family.base.path,
        "models.antiexpert.path": small,
        "task.data_dir": OmegaConf.select(config, "task.data_dir") or family.data_dir,
    }
    return ["models=local", *(f"{key}={path}" for key, path in paths.items() if path is not None)]


def check_targets(node: object, key: str, trusted: Sequence[str] = ()) -> None:
    """Sees that every `_target_` in `node`, the configuration's part at `key`, is at home there and takes its keys.

    `trusted` are packages beside our own. Raises UserError. Imports the modules of the targets, so that a wrong name is
    found before anything is built.
    """
    for where, values in _targets(node, key):
        target = _locate(values["_target_"], f"{where}._target_", [*HOMES[key], *trusted])
        for ability in ABILITIES.get(key, ()):
            if not hasattr(target, ability):
                raise UserError(f"{where}._target_={values['_target_']} cannot be used there: it has no {ability}()")
        parameters = inspect.signature(target).parameters
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            continue
        for name in values:
            if name not in parameters and name not in RESERVED:
                raise unknown_name("key", f"{where}.{name}", [f"{where}.{known}" for known in parameters])
        _check_required(where, values, parameters)


def build(node: Mapping[str, Any], **extra: object) -> Any:
    """What a checked configuration describes; errors are those of the target itself."""
    try:
        return instantiate(node, _convert_="all", **extra)
    except InstantiationException as error:
        raise error.__cause__ or error from None


def arms(specs: Mapping[str, ArmSpec]) -> dict[str, ArmSpec]:
    """The arms, each with its rule built; raises UserError for a rule's bad parameter."""
    return {name: spec if spec.rule is None else _with_rule(f"arms.{name}", spec) for name, spec in specs.items()}


def _with_rule(key: str, spec: ArmSpec) -> ArmSpec:
    try:
        return spec.model_copy(update={"rule": build(spec.rule)})
    except (TypeError, ValueError) as error:
        raise UserError(f"{key}.rule: {error}") from error


def _targets(node: object, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield key, node
        for name, child in node.items():
            yield from _targets(child, f"{key}.{name}")
    elif isinstance(node, list):
        for index, child in enumerate(node):
            yield from _targets(child, f"{key}[{index}]")


def _locate(target: object, key: str, packages: Sequence[str]) -> Callable[..., Any]:
    """The class or function called `target`; it must be at home in one of `packages`, not only be reachable there."""
    if not isinstance(target, str) or not _inside(target, packages):
        raise UserError(
            f"{key}={target} is outside {', '.join(packages)}: only parts of these may be built here; "
            "add a package that you trust to allow_targets"
        )
    if any(part.startswith("_") for part in target.split(".")):
        raise UserError(f"{key}={target} is private: name a class or function that is meant to be built")
    module, _, name = target.rpartition(".")
    try:
        found = pkgutil.resolve_name(target)
    except (ImportError, AttributeError) as error:
        raise _not_found(key, module, name) from error
    if not callable(found) or not _inside(f"{found.__module__}.", packages):
        raise UserError(f"{key}={target} is not a class or function of {', '.join(packages)}")
    return found


def _inside(target: str, packages: Sequence[str]) -> bool:
    return any(target.startswith(f"{package}.") for package in packages)


def _not_found(key: str, module: str, name: str) -> UserError:
    try:
        members = vars(pkgutil.resolve_name(module))
    except (ImportError, AttributeError):
        return UserError(f"{key}={module}.{name}: there is no module {module}")
    public = members.get("__all__", [member for member in members if not member.startswith("_")])
    return unknown_name(key, f"{module}.{name}", [f"{module}.{member}" for member in public])


def _check_required(where: str, values: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> None:
    """Raises for a parameter without a value; a partial target gets the rest of its parameters later."""
    if values.get("_partial_"):
        return
    for name, parameter in parameters.items():
        needed = parameter.default is parameter.empty and parameter.kind is not parameter.VAR_POSITIONAL
        if needed and name not in values:
            raise UserError(f"{where}.{name} is missing: {values['_target_']} needs it")
