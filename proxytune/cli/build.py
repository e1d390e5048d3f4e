"""Builds the parts that a configuration names by `_target_`, from this package and from others that the user lists."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from proxytune.errors import UserError, unknown_name
from proxytune.experiment.arm_spec import ArmSpec

RESERVED = {"_target_", "_partial_"}
"""Keys besides a target's own parameters."""
HOMES = {
    "models": ("proxytune.models", "proxytune.miniature"),
    "arms": ("proxytune.fusion",),
    "fusion": ("proxytune.fusion",),
    "engine": ("proxytune.engines",),
    "training": ("proxytune.training",),
    "logger": ("proxytune.tracking",),
}
"""Where the parts of each key of a configuration are at home."""
ABILITIES = {"arms": ("fuse",), "fusion": ("fuse",), "engine": ("score", "generate"), "logger": ("start",)}
"""What the parts of a key must be able to do."""


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
    """The arms, each with its rule built and tried out; raises UserError for a rule's bad parameter, and for a bug."""
    from proxytune.experiment.arms import try_rules

    built = {name: spec if spec.rule is None else _with_rule(f"arms.{name}", spec) for name, spec in specs.items()}
    try_rules(built)
    return built


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
