"""A sub-command as a Hydra application: it composes the configuration and reports a user's mistake in one line."""

from __future__ import annotations

import copy
import logging
import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from proxytune.cli import secrets
from proxytune.cli.arguments import flag_parser, help_text, parse
from proxytune.cli.hydra_errors import COMPOSING, check_hydra, check_launcher, lost_job, one_line
from proxytune.cli.run_folder import NOTES, note_failure
from proxytune.compat.hydra import Hydra, application, swept
from proxytune.errors import UserError, error_line
from proxytune.folders import config_dir

log = logging.getLogger("proxytune")

JobCheck = Callable[[DictConfig], object]
"""Checks a composed configuration before anything is written or loaded; raises UserError."""
JobWork = Callable[[DictConfig, Path], object]
"""Does the work of a job, given its configuration and output folder; an optimiser gets what it returns."""
AfterSweep = Callable[[Path, Sequence[Sequence[str]], DictConfig], object]
"""Called after a sweep with its folder, the overrides of its jobs, and the sweep's own configuration."""


class OurError(Exception):
    """Carries an error of a check or a job through Hydra, apart from Hydra's own."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def _job(work: JobWork, config: DictConfig) -> object:
    """What Hydra calls with the composed configuration, once per job of a sweep: what `work` returns, or its error."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        return work(config, folder)
    except Exception as error:
        by_user = isinstance(error, UserError)
        # Hydra announces a raised error with a line of its own: useful only where it says which job failed.
        if HydraConfig.get().mode != RunMode.MULTIRUN:
            if by_user:
                _remove_notes(folder)
            return OurError(error)
        note_failure(folder, " ".join(str(error).split()) if by_user else error_line(error))
        if by_user:
            log.error(error)
        raise OurError(error) from error


class Command(NamedTuple):
    """A sub-command that Hydra composes `conf/<name>.yaml` for."""

    name: str
    check: JobCheck
    work: JobWork
    after_sweep: AfterSweep | None = None

    def main(self, arguments: Sequence[str]) -> int:
        """Checks all jobs, then calls `work` for each; returns the exit status.

        Raises UserError for the user's mistakes. What is only printed need not be able to run.
        """
        given = parse(arguments)
        folders = [config_dir(), *([] if given.config_dir is None else [_folder(given.config_dir)])]
        if given.help:
            print(help_text(self.name, folders))
            return 0
        check = None if given.cfg or given.info or given.hydra_help else self.check
        try:
            with application(folders, partial(_check, check, given.multirun)) as hydra:
                failure = self._act(hydra, given)
        except OurError as error:
            failure = error
        except COMPOSING as error:
            raise one_line(error) from error
        if isinstance(failure, OurError):
            raise failure.error
        return 0

    def _act(self, hydra: Hydra, given: Namespace) -> object:
        name, job = given.config_name or self.name, partial(_job, self.work)
        if given.hydra_help:
            hydra.hydra_help(None, flag_parser(), Namespace(overrides=[]))
        elif given.cfg:
            with secrets.environment_masked():
                hydra.show_cfg(name, given.overrides, given.cfg, given.package, given.resolve)
        elif given.info:
            print(_info(hydra, name, given), end="")
        elif given.multirun:
            self._sweep(hydra, name, job, given.overrides)
        else:
            return hydra.run(name, job, given.overrides).return_value
        return None

    def _sweep(self, hydra: Hydra, name: str, job: Callable[[DictConfig], object], overrides: list[str]) -> None:
        """Runs all jobs, and then `after_sweep`, even if some have failed."""
        try:
            hydra.multirun(name, job, [*overrides, "hydra.mode=MULTIRUN"])
        except Exception as error:
            sweep, _ = swept(hydra)
            if sweep is not None and (lost := lost_job(error, sweep)):
                raise lost from error
            raise
        finally:
            sweep, jobs = swept(hydra)
            if self.after_sweep is not None and sweep is not None:
                self.after_sweep(Path(sweep.hydra.sweep.dir), jobs, sweep)


def _info(hydra: Hydra, name: str, given: Namespace) -> str:
    """As one text: Hydra prints it line by line, which fails where its reader stops early."""
    text = StringIO()
    with secrets.environment_masked(), redirect_stdout(text):
        hydra.show_info(given.info, name, given.overrides, RunMode.MULTIRUN if given.multirun else RunMode.RUN)
    return text.getvalue()


def _check(check: JobCheck | None, sweep: bool, config: DictConfig, mode: RunMode) -> None:
    """Raises UserError for a configuration that may not run; with `check` None, for one that may not be printed."""
    check_hydra(config)
    secrets.check(config)
    if check is None:
        return
    if mode == RunMode.MULTIRUN:
        check_launcher(config)
        return
    if config.hydra.mode == RunMode.MULTIRUN and not sweep:
        raise UserError("hydra.mode=MULTIRUN is a sweep: give the flag --multirun")
    whole = copy.deepcopy(config)
    with open_dict(whole):
        unnumbered = OmegaConf.is_missing(whole.hydra.job, "num")  # a single run, or a job that an optimiser chose
        number = 0 if unnumbered else whole.hydra.job.num
        whole.hydra.job.num, whole.hydra.job.id = number, str(number)
        of_sweep = "${hydra.sweep.dir}" if unnumbered else "${hydra.sweep.dir}/${hydra.sweep.subdir}"
        # Not resolved here: a mistake in it is for `check` to find.
        whole.hydra.runtime.output_dir = of_sweep if sweep else "${hydra.run.dir}"
        HydraConfig.instance().set_config(whole)
    job = copy.deepcopy(whole)
    with open_dict(job):
        del job["hydra"]
    try:
        check(job)
    except UserError as error:
        if not sweep:
            raise
        raise UserError(f"{error} (job {' '.join(config.hydra.overrides.task)})") from error
    except Exception as bug:
        raise OurError(bug) from bug


@contextmanager
def resume_hint(store: str | None) -> Iterator[None]:
    """Inside it, Ctrl-C and the traceback of a bug say how to resume."""
    kept = "nothing was kept (store=null)" if store is None else f"re-run the same command to resume from {store}"
    try:
        yield
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt("; ".join([*map(str, stop.args), kept])) from stop
    except UserError:
        raise
    except Exception as bug:
        bug.add_note(f"This is an error of the program, not of its input; {kept}")
        raise


def _folder(path: str) -> Path:
    if not Path(path).is_dir():
        raise UserError(f"--config-dir {path}: there is no such folder")
    return Path(path).absolute()


def _remove_notes(folder: Path) -> None:
    """Removes the folder of a failed job, unless it holds more than Hydra's own notes."""
    here = Path.cwd()
    if folder == here or folder.is_mount() or {path.name for path in folder.iterdir()} - NOTES:
        return
    shutil.rmtree(folder)
    for parent in folder.parents:
        if parent == here or here not in parent.parents or any(parent.iterdir()):
            break
        parent.rmdir()
