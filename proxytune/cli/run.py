"""`proxytune run`: Hydra composes the configuration, its parts are built, the experiment runs, the table is printed."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

import proxytune
from proxytune.cli import build, schema
from proxytune.cli.explain import explain
from proxytune.errors import UserError, unknown_name

log = logging.getLogger("proxytune")

SWITCHES = [("--help", "-h"), ("--hydra-help",), ("--run", "-r"), ("--multirun", "-m"), ("--resolve",)]
VALUED = [("--cfg", "-c"), ("--package", "-p"), ("--config-dir", "-cd"), ("--config-name", "-cn")]
"""Hydra's flags; not all of them: --experimental-rerun unpickles a file."""


def main(arguments: Sequence[str]) -> int:
    """`proxytune run [overrides] [Hydra flags]`; raises UserError for the user's mistakes."""
    overrides, flags = _split(arguments)
    if not any(override.startswith(("experiment=", "models=")) for override in overrides):
        overrides.append("experiment=miniature")
    job = Job()
    run = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="run")(job)
    try:
        with _as_hydra_application([*overrides, *flags]):
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


def config_dir() -> Path:
    """The folder of configurations: inside the installed package, or beside it in a checkout."""
    package = Path(proxytune.__file__).parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


class Job:
    """What Hydra calls with the composed configuration, once per job of a sweep."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []

    def __call__(self, config: DictConfig) -> None:
        try:
            evaluate(config, Path(HydraConfig.get().runtime.output_dir))
        except Exception as error:
            self.errors.append(error)
            # Hydra announces an error with a line of its own: useful only where it says which job of a sweep failed.
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                if isinstance(error, UserError):
                    log.error(error)
                raise


def evaluate(config: DictConfig, output_dir: Path) -> None:
    """Runs the experiment that `config` describes, writes its reports into `output_dir` and prints the table."""
    values = schema.resolve(config)
    settings = schema.check(values)
    # The runner hands the engine its models.
    engine = {**settings.engine, "_partial_": True}
    for key, node in {"models": settings.models, "engine": engine, "arms": values["arms"]}.items():
        build.check_targets(node, key, ["proxytune", *settings.allow_targets])
    arms = build.arms(settings.arms)

    from proxytune import experiment, reporting

    tasks = _task_names(settings.task)
    record = experiment.run(
        build.build(settings.models),
        tasks,
        arms,
        build.build(engine),
        output_dir=output_dir,
        store_path=settings.store,
        data_dir=settings.task.data_dir,
        seed=settings.seed,
        limit=settings.limit,
        num_fewshot=settings.num_fewshot,
        only=settings.only,
        # The file's name is no key of the configuration, but it is what a paper's table finds a run by.
        config={**values, "experiment": HydraConfig.get().runtime.choices.get("experiment")},
    )
    reporting.write(record, output_dir)
    reporting.show(record)
    print(f"Results: {output_dir}")


def _task_names(task: schema.TaskConfig) -> list[str]:
    """The full names of the tasks; an unknown one is found here, before a family is built."""
    from proxytune.tasks.registry import find, full_names

    names = full_names(task.names, task.style)
    for name in names:
        find(name)
    return names


@contextmanager
def _as_hydra_application(arguments: Sequence[str]) -> Iterator[None]:
    """Hydra reads `sys.argv`, and passes exceptions on, instead of printing and exiting, if HYDRA_FULL_ERROR is set."""
    argv, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = ["proxytune run", *arguments], "1"
    try:
        yield
    finally:
        sys.argv = argv
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The overrides, and the flags with their values, which Hydra itself does not let stand between overrides."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for names in SWITCHES:
        parser.add_argument(*names, action="store_true")
    for names in VALUED:
        parser.add_argument(*names, choices=("job", "hydra", "all") if "--cfg" in names else None)
    try:
        _, overrides = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from error
    for flag in (override for override in overrides if override.startswith("-")):
        known = [name for names in (*SWITCHES, *VALUED) for name in names]
        raise unknown_name("flag", flag.partition("=")[0], known)
    flags = list(arguments)
    for override in overrides:
        flags.remove(override)
    return overrides, flags
