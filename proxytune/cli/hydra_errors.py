"""Hydra's part of a configuration: what it may build, which launchers can run, and its errors in one line each."""

from __future__ import annotations

import inspect
import pkgutil
import re
import shutil
from collections.abc import Sequence

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from proxytune.cli.secrets import texts
from proxytune.errors import UserError, first_line, unknown_name

COMPOSING = (HydraException, OmegaConfBaseException, YAMLError, OSError, ValueError)
"""What Hydra raises for a mistake on the command line or in a file, or for a folder that cannot be written."""
PACKAGES = {"submitit", "joblib", "ray"}
"""Whose errors say that a job was lost. A job's own errors come back as what they were."""
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


def one_line(error: Exception) -> UserError:
    """The UserError for one of `COMPOSING`."""
    match error:
        case MissingConfigException(missing_cfg_file=str(file), options=options) if "/" in file:
            return _unknown_choice(file, options or ())
        case OverrideParseException():
            plain = str(error.override).isascii()
            why = _without_advice(error) if plain else "letters beyond ASCII need quotes, as in key=['\u00e4','\u00f6']"
            return UserError(f"cannot read the argument {error.override!r} as key=value: {why}")
        case HydraException(__cause__=ConfigAttributeError() | ConfigKeyError() as cause):
            return _unknown_key(cause)
        case HydraException(__cause__=OmegaConfBaseException() as cause):
            return UserError(f"{cause.full_key or 'configuration'}: {first_line(cause)}")
        case OSError() if not isinstance(error, HydraException):
            from proxytune.atomic import cannot_write

            return UserError(f"output: {cannot_write(error.filename or 'the notes on the run', error)}")
        case YAMLError():
            return UserError(f"a configuration file is not valid YAML: {error}")
    return UserError(_without_advice(error))


def lost_job(error: Exception, config: DictConfig) -> UserError | None:
    """The UserError for a launcher's own error; None for any other."""
    if type(error).__module__.partition(".")[0] not in PACKAGES:
        return None
    said = " ".join(str(error).partition("Error stream")[0].split()) or type(error).__name__
    folder = config.hydra.launcher.get("submitit_folder")
    logs = f" (what it printed: {folder})" if folder else ""
    return UserError(
        f"hydra/launcher={config.hydra.runtime.choices['hydra/launcher']} lost a job: {said}{logs}; the results of the "
        "others are kept: re-run the same command to resume"
    )


def _unknown_choice(file: str, options: Sequence[str]) -> UserError:
    """For a `<group>/<choice>` that is not there; Hydra gives no options for one of a list (arms=[base])."""
    group, _, choice = file.rpartition("/")
    near = unknown_name(f"choice for {group}", choice, options)
    said = str(near) if options else f"no file {choice!r} for {group}"
    if group == "arms":
        return UserError(f"{said}. To run some of the arms: only=[{choice}]")
    if group in ("hydra/launcher", "hydra/sweeper"):
        return UserError(f"{said}; more of them: pip install 'proxytune[{'ray' if 'ray' in choice else 'sweep'}]'")
    return UserError(said)


def _unknown_key(error: OmegaConfBaseException) -> UserError:
    """For a missing key: the nearest name on its level, or its own name one level deeper; how to add a new entry."""
    key, parent = str(error.full_key), error.parent_node
    group, _, last = key.rpartition(".")
    found = parent.items_ex(resolve=False) if isinstance(parent, DictConfig) and parent else ()
    siblings = {str(name): child for name, child in found if name != "hydra"}
    parts = [name for name, child in siblings.items() if isinstance(child, DictConfig) and child and last in child]
    names = [*siblings, *(f"{part}.{last}" for part in parts)]
    near = unknown_name("key", key, [f"{group}.{name}" if group else name for name in names])
    return UserError(f"{near}; to add an entry: +{key}=..." if group else str(near))


def _without_advice(error: Exception) -> str:
    """Hydra's message without the lines that point to its own documentation and search path."""
    message = re.split(r"\n(?:See https?:|Config search path:)", str(error))[0]
    return " ".join(message.split())
