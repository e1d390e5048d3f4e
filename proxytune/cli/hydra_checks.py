"""What a configuration may have Hydra itself build: its own plugins and log handlers, and launchers that can run."""

from __future__ import annotations

import inspect
import pkgutil
import shutil

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
PROGRAMS = {"hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher": ("sbatch", "srun")}
"""Launcher -> the programs that it calls."""


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


def check_launcher(config: DictConfig) -> None:
    """Raises UserError where the launcher of a sweep cannot run here."""
    launcher = config.hydra.launcher.get("_target_")
    missing = [program for program in PROGRAMS.get(launcher, ()) if shutil.which(program) is None]
    if missing:
        raise UserError(
            f"hydra/launcher={config.hydra.runtime.choices['hydra/launcher']} needs SLURM, and this machine has no "
            f"{' and no '.join(missing)}: start the sweep on a node that submits jobs, or give "
            "hydra/launcher=submitit_local"
        )
