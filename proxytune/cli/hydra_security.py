"""What a configuration may make Hydra itself build: its own plugins and log handlers, nothing else."""

from __future__ import annotations

import inspect
import pkgutil

from omegaconf import DictConfig

from proxytune.cli.secrets import texts
from proxytune.errors import UserError

OWN = (
    "hydra._internal.core_plugins.",
    "hydra_plugins.",
    "optuna.samplers.",
    "logging.",
    "colorlog.",
    "proxytune.console.",
)
"""Where launchers, sweepers and log handlers are at home."""
BUILDING = ("_target_", "()", "class", "queue", "listener")
"""Keys whose value Hydra or logging finds by its name and calls."""
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")


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
