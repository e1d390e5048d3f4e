"""`proxytune run`: Hydra composes the configuration, its parts are built, the experiment runs, the table is printed."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from proxytune.cli import build, ranges, run_folder, schema, secrets
from proxytune.cli.application import Command, resume_hint
from proxytune.cli.logger import tracked
from proxytune.errors import UserError
from proxytune.experiment.answers.tracing import Tracing
from proxytune.experiment.arm_spec import ArmSpec
from proxytune.record import Record
from proxytune.reporting.sweep import headline, headline_arm
from proxytune.tracking import Logger, Tracker

MINIATURE_DATA = "proxytune.miniature.data_folder"
"""Makes the data of the miniature, and no models."""


def main(arguments: Sequence[str]) -> int:
    """`proxytune run [overrides] [Hydra flags]`; raises UserError for the user's mistakes."""
    return Command("run", check, work, after_sweep).main(with_experiment(arguments))


def with_experiment(arguments: Sequence[str]) -> Sequence[str]:
    """`arguments`, with the miniature where they name neither an experiment nor models."""
    named = any(argument.startswith(("experiment=", "models=")) for argument in arguments)
    return arguments if named else ["experiment=miniature", *arguments]


class Experiment(NamedTuple):
    """A configuration that was checked, with what can be built of it without reading data or models."""

    settings: schema.RunConfig
    tasks: list[str]
    arms: dict[str, ArmSpec]
    only: list[str] | None
    engine: Callable[..., Any]
    logger: Logger | None


def check(config: DictConfig) -> None:
    """Raises UserError for anything in `config` that is wrong by itself, and for a folder of another run."""
    checked = prepare(config)
    run_folder.check_folder(Path(HydraConfig.get().runtime.output_dir), config)
    _check_examples(checked.settings, checked.tasks)
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        _check_data(checked)


def _check_examples(settings: schema.RunConfig, tasks: Sequence[str]) -> None:
    """No miniature is trained for a number of examples that its tasks do not have."""
    if settings.num_fewshot is None or settings.miniature is None or settings.task.data_dir is not None:
        return
    from proxytune.tasks import brought_by_family, load_task

    folder = build.build({"_target_": MINIATURE_DATA, "recipe": settings.miniature})
    for task in tasks:
        with brought_by_family(task, folder):
            load_task(task, folder, settings.num_fewshot)


def _check_data(checked: Experiment) -> None:
    """A sweep does not begin with a job whose data or models are missing."""
    from proxytune import experiment

    family = build.build(checked.settings.models)
    experiment.check_run(family, checked.tasks, checked.arms, limit=checked.settings.limit, **_options(checked))


def _options(checked: Experiment) -> dict[str, Any]:
    """What a run and the check before it have in common."""
    settings = checked.settings
    return {
        "data_dir": settings.task.data_dir,
        "seed": settings.seed,
        "num_fewshot": settings.num_fewshot,
        "only": checked.only,
        "execution": settings.execution,
        "judges": _judges(settings.task),
    }


def prepare(config: DictConfig) -> Experiment:
    """Raises UserError for anything in `config` that is wrong by itself."""
    values = schema.plain_values(config)
    settings = schema.check(values)
    # The runner hands the engine its models.
    engine = {**values["engine"], "_partial_": True}
    nodes = {"models": settings.models, "engine": engine, "arms": values["arms"], "logger": settings.logger}
    for key, node in nodes.items():
        build.check_targets(node, key, settings.allow_targets)
    several = ranges.expanded(settings.arms)
    arms = build.arms({name: spec for some in several.values() for name, spec in some.items()})
    only = None if settings.only is None else [name for given in settings.only for name in several[given]]
    logger = None if settings.logger is None else build.build(settings.logger)
    return Experiment(settings, _task_names(settings.task), arms, only, build.build(engine), logger)


def work(config: DictConfig, output_dir: Path) -> float | None:
    """Runs the experiment that `config` describes, writes its reports into `output_dir` and prints the table.

    Returns the headline number where an optimiser asks for it.
    """
    checked = prepare(config)
    hydra = HydraConfig.get()
    # The file's name is no key of the configuration, but it is what a paper's table finds a run by.
    resolved = {**secrets.resolved(config), "experiment": hydra.runtime.choices.get("experiment")}

    from proxytune import experiment

    family = build.build(checked.settings.models)
    before = run_folder.finished(output_dir, resolved) if hydra.mode == RunMode.MULTIRUN else None
    if before is not None and experiment.is_of(before, family):
        print(f"Results: {output_dir} (finished before)")
        return _headline(before, checked.settings)
    gc.freeze()  # what imports left stays to the end: the collector need not walk it again and again
    claimed = run_folder.claimed(output_dir, config)
    with resume_hint(checked.settings.store), claimed, tracked(checked.logger, output_dir, resolved) as tracker:
        record = _record(checked, family, resolved, output_dir, tracker)
        _write(record, output_dir, checked.settings.report)
        if tracker is not None:
            tracker.finish(record, output_dir, status=1 if record.failed else 0)
    print(f"Results: {output_dir}")
    _check_failures(record, output_dir)
    return _headline(record, checked.settings)


def _record(
    checked: Experiment, family: Any, resolved: dict[str, Any], output_dir: Path, tracker: Tracker | None
) -> Record:
    """The whole run, after its pilot if there is one."""
    from proxytune import experiment

    settings = checked.settings
    again = HydraConfig.get().mode == RunMode.MULTIRUN or settings.pilot is not None
    run = partial(
        experiment.run,
        family,
        checked.tasks,
        checked.arms,
        checked.engine,
        store_path=settings.store,
        loaded=_kept_models() if again else None,
        config=resolved,
        **_options(checked),
    )
    if settings.pilot is not None:
        _pilot(run, settings.pilot, output_dir)
    return run(
        output_dir=output_dir,
        limit=settings.limit,
        tracing=Tracing(settings.trace, settings.trace_items, settings.trace_missing),
        watch=None if tracker is None else tracker.progress,
    )


def _write(record: Record, output_dir: Path, report: bool) -> None:
    """Tables on the screen and in files, and the report if it was requested."""
    from proxytune import reporting

    reporting.write(record, output_dir)
    reporting.show(record)
    if report:
        _write_report(output_dir)


def _headline(record: Record, settings: schema.RunConfig) -> float | None:
    hydra = HydraConfig.get()
    if not record.tasks or (settings.headline is None and hydra.mode != RunMode.MULTIRUN):
        return None
    return headline(record, headline_arm(record, settings.headline, hydra.overrides.task))


@cache
def _kept_models() -> Any:
    """The models that the jobs of a sweep in this process share."""
    from proxytune.experiment.runner import LoadedModels

    return LoadedModels()


def after_sweep(folder: Path, jobs: Sequence[Sequence[str]], config: DictConfig) -> None:
    """Prints the sweep's table and writes it into the sweep's folder."""
    from proxytune.reporting.sweep import summarise

    summarise(folder, jobs, config.headline)


def _pilot(run: Callable[..., Record], items: int, output_dir: Path) -> None:
    """Evaluates the first items and prints whether each fused arm helps; their answers wait in the store."""
    from proxytune.reporting.pilot import pilot_lines

    for line in pilot_lines(run(output_dir=output_dir / "pilot", limit=items)):
        print(line)


def _write_report(output_dir: Path) -> None:
    # Imported only now: a run without a report need not wait for it.
    from proxytune.reporting.report import read_run, write_report

    path = output_dir / "report.html"
    write_report([read_run(output_dir)], path)
    print(f"Report: {path}")


def _task_names(task: schema.TaskConfig) -> list[str]:
    """The full names of the tasks; an unknown one is found here, before a family is built."""
    from proxytune.tasks import find, full_names

    names = full_names(task.names, task.style)
    for name in names:
        find(name)
    return names


def _judges(task: schema.TaskConfig) -> Any:
    """The models that judge outputs."""
    from proxytune.tasks import judges_of

    return judges_of(task.model_dump(exclude={"names", "style", "data_dir"}), "task.")


def _check_failures(record: Record, output_dir: Path) -> None:
    """Raises UserError if an arm failed: the run's exit status must say so."""
    failed = [f"{arm} on {task} ({why})" for task, arms in record.failed.items() for arm, why in arms.items()]
    if failed:
        raise UserError(
            f"{len(failed)} of the arms failed: {'; '.join(failed)}. All others are in {output_dir}: fix the cause "
            "and re-run the same command; only what is missing is computed"
        )
