"""Hydra's launchers for clusters: what they need, and their errors as one line."""

from __future__ import annotations

import shutil

from omegaconf import DictConfig

from proxytune.errors import UserError

PROGRAMS = {"hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher": ("sbatch", "srun")}
"""Launcher -> the programs that it calls."""
PACKAGES = {"submitit", "joblib", "ray"}
"""Whose errors say that a job was lost. A job's own errors come back as what they were."""


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
