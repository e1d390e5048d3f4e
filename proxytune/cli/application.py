"""A sub-command as a Hydra application: arguments in, a composed configuration out, a user's mistake as one line."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

import proxytune
from proxytune.cli import preflight, secrets
from proxytune.cli.explain import explain
from proxytune.errors import UserError, unknown_name

log = logging.getLogger("proxytune")

SWITCHES = [("--help", "-h"), ("--hydra-help",), ("--run", "-r"), ("--multirun", "-m"), ("--resolve",)]
VALUED = [("--cfg", "-c"), ("--package", "-p"), ("--config-dir", "-cd"), ("--config-name", "-cn")]
"""Hydra's flags; not all of them: --experimental-rerun unpickles a file."""


Check = Callable[[DictConfig], object]
"""What looks at a composed configuration before anything is written or loaded; raises UserError."""
Work = Callable[[DictConfig, Path], None]
"""What is done with a composed configuration and the job's output folder."""


def compose_and_run(command: str, check: Check, work: Work, overrides: Sequence[str], flags: Sequence[str]) -> int:
    """Hydra composes `conf/<command>.yaml` with `overrides` and calls `work`, once per job of a sweep.

    All jobs are checked before the first of them begins. Returns the exit status; raises UserError for the user's
    mistakes.
    """
    job = Job(work)
    run = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=command)(job)
    options, _ = _parser().parse_known_args(flags)
    try:
        if not (options.help or options.hydra_help):
            _check_all(command, check, overrides, options)
        printing = secrets.environment_masked() if options.cfg else nullcontext()
        with printing, _as_hydra_application(command, [*overrides, *flags]):
            run()
    except SystemExit as end:  # --help has printed
        return int(end.code or 0)
    except Exception as error:
        if error in job.errors:
            raise
        raise explain(error) from error
    if job.errors:
        raise job.errors[0]
    return 0


def _check_all(command: str, check: Check, overrides: Sequence[str], options: argparse.Namespace) -> None:
    """Raises UserError for the first job that may not run; a configuration that is only printed need not be able to."""
    name = options.config_name or command
    for job, config in preflight.jobs(config_dir(), name, overrides, options.config_dir, options.multirun):
        preflight.check_hydra(config)
        secrets.check(config)
        if options.cfg:
            continue
        with open_dict(config):
            del config["hydra"]
        try:
            check(config)
        except UserError as error:
            if options.multirun:
                raise UserError(f"{error} (job {' '.join(job)})") from error
            raise


def config_dir() -> Path:
    """The folder of configurations: inside the installed package, or beside it in a checkout."""
    package = Path(proxytune.__file__).parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


class Job:
    """What Hydra calls with the composed configuration, once per job of a sweep."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.errors: list[Exception] = []

    def __call__(self, config: DictConfig) -> None:
        folder = Path(HydraConfig.get().runtime.output_dir)
        try:
            self.work(config, folder)
        except Exception as error:
            self.errors.append(error)
            if isinstance(error, UserError):
                _clear(folder)
            # Hydra announces an error with a line of its own: useful only where it says which job of a sweep failed.
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                if isinstance(error, UserError):
                    log.error(error)
                raise


def _clear(folder: Path) -> None:
    """Removes the folder of a job that failed if nothing is in it but Hydra's own notes."""
    here = Path.cwd()
    if folder == here or {path.name for path in folder.iterdir()} - {".hydra", "proxytune.log"}:
        return
    shutil.rmtree(folder)
    for parent in folder.parents:
        if parent == here or here not in parent.parents or any(parent.iterdir()):
            break
        parent.rmdir()


@contextmanager
def _as_hydra_application(command: str, arguments: Sequence[str]) -> Iterator[None]:
    """Hydra reads `sys.argv`, and passes exceptions on, instead of printing and exiting, if HYDRA_FULL_ERROR is set."""
    argv, full_error, raising = sys.argv, os.environ.get("HYDRA_FULL_ERROR"), logging.raiseExceptions
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = [f"proxytune {command}", *arguments], "1"
    logging.raiseExceptions = False  # a log file on a full disk; what matters fails with a line of its own
    try:
        yield
    finally:
        sys.argv, logging.raiseExceptions = argv, raising
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error


def _choices(*groups: str) -> str:
    """What `${choices:GROUP,...}` stands for in a help text: a line for each of the groups that matter to a command."""
    if not GlobalHydra.instance().is_initialized():
        return ""  # a configuration that is resolved later has nothing to choose from
    known = GlobalHydra.instance().config_loader().get_group_options
    return "\n".join(f"{group}: {', '.join(sorted(known(group)))}" for group in groups)


OmegaConf.register_new_resolver("choices", _choices, replace=True)


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The overrides, and the flags with their values, which Hydra itself does not let stand between overrides."""
    try:
        _, overrides = _parser().parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from error
    for flag in (override for override in overrides if override.startswith("-")):
        known = [name for names in (*SWITCHES, *VALUED) for name in names]
        raise unknown_name("flag", flag.partition("=")[0], known)
    flags = list(arguments)
    for override in overrides:
        flags.remove(override)
    return overrides, flags


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for names in SWITCHES:
        parser.add_argument(*names, action="store_true")
    for names in VALUED:
        parser.add_argument(*names, choices=("job", "hydra", "all") if "--cfg" in names else None)
    return parser
