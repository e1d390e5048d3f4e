"""Before Hydra runs anything: every job is composed and looked at, so that a mistake leaves nothing behind."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, open_dict

from proxytune.cli.secrets import texts
from proxytune.errors import UserError

OWN = ("hydra._internal.core_plugins.", "hydra_plugins.", "logging.", "colorlog.")
"""What Hydra may build for itself: launchers, sweepers and log handlers, no callbacks of others."""
BUILDING = ("_target_", "()", "class", "queue", "listener")
"""Keys whose value Hydra or logging finds by its name and calls."""
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")


def jobs(
    config_dir: Path, name: str, overrides: Sequence[str], more: str | None = None, sweep: bool = False
) -> Iterator[tuple[list[str], DictConfig]]:
    """(overrides, composed configuration with Hydra's own) of every job; `more` is another folder of configurations.

    Nothing that a configuration names is imported or built.
    """
    if more is not None and not Path(more).is_dir():
        raise UserError(f"--config-dir {more}: there is no such folder")
    searched = [] if more is None else [f"hydra.searchpath=[file://{Path(more).absolute()}]"]
    with initialize_config_dir(str(config_dir), version_base="1.3"):
        for number, job in enumerate(_swept(overrides) if sweep else [list(overrides)]):
            config = _composed(name, [*job, *searched])
            with open_dict(config):
                config.hydra.job.num, config.hydra.job.id = number, str(number)
                config.hydra.runtime.output_dir = "${hydra.run.dir}"
            HydraConfig.instance().set_config(config)
            yield job, config


def _composed(name: str, overrides: list[str]) -> DictConfig:
    try:
        return compose(name, overrides, return_hydra_config=True)
    except (TypeError, AttributeError, AssertionError) as error:  # Hydra trusts that choices are names
        raise UserError(f"cannot compose a configuration from {' '.join(overrides)}: {error}") from error


def check_hydra(config: DictConfig) -> None:
    """Raises UserError where `config.hydra` would have Hydra build something that is neither Hydra's nor a log's."""
    for key, value in texts(config):
        if not key.startswith("hydra."):
            continue
        builds = key.rpartition(".")[2] in BUILDING
        if (builds and not _is_own(value)) or (value.startswith("ext://") and value not in STREAMS):
            raise UserError(f"{key}={value} is not allowed: Hydra itself may build only {', '.join(OWN)}...")


def _is_own(name: str) -> bool:
    """Whether `name` is that of a class at home in `OWN`, not only reachable there (logging.os.system)."""
    if not name.startswith(OWN):
        return False
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError):
        return False
    return inspect.isclass(found) and f"{found.__module__}.".startswith(OWN)


def _swept(overrides: Sequence[str]) -> Iterator[list[str]]:
    """The overrides of each job of a sweep."""
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    choices = [_choices(override) for override in parser.parse_overrides(list(overrides))]
    return (list(job) for job in product(*choices))


def _choices(override: Override) -> list[str]:
    if override.is_discrete_sweep():
        return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
    return [str(override.input_line)]
