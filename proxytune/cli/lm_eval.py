"""`proxytune lm-eval`: lm-evaluation-harness's own command line, extended by `--model proxytune` and our tasks.

    proxytune lm-eval --model proxytune --model_args base=LARGE,expert=TUNED,antiexpert=SMALL,alpha=1.0 --tasks gsm8k
    proxytune lm-eval --model proxytune --model_args pretrained=FOLDER --tasks gsm8k

The parts of --model_args: proxytune/experiment/lm_eval/cli_model.py.
For everything else, see lm-eval's own help: proxytune lm-eval run --help.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from proxytune.errors import UserError


def main(arguments: Sequence[str]) -> int:
    """Runs lm-eval's command line with `arguments`; returns its exit status, 0 if it sets none.

    Raises UserError for a task of ours whose data is only ever local, as lm-eval's command line can't say where, and
    for one whose data is on the hub, which cannot be reached.
    """
    from proxytune.compat.lm_eval import run_command_line

    try:
        run_command_line(arguments, _complete)
    except ConnectionError as error:
        if "on the Hub" not in str(error):  # the words of `datasets`
            raise
        advice = "proxytune run reads local files of our tasks with task.data_dir=FOLDER"
        raise UserError(f"--tasks: cannot load the data of a task from the hub ({error}): {advice}") from error
    except ValueError as error:
        if "confirm_run_unsafe_code" not in str(error):
            raise
        raise UserError(
            "--tasks: a task runs code that models write: give --confirm_run_unsafe_code; ours run it in bubblewrap"
        ) from error
    return 0


def _complete(given: Namespace) -> None:
    _add_our_tasks(given)
    from proxytune.experiment.lm_eval.cli_model import NO_CACHE  # registers the model

    asked = {key: value for key, value in vars(given).items() if value is not None}
    settings = dict(_file(given)) | {key: asked[key] for key in ("model", "use_cache") if key in asked}
    if given.command == "run" and settings.get("model") == "proxytune" and settings.get("use_cache") is not None:
        raise UserError(NO_CACHE)


def _file(given: Namespace) -> Mapping[str, Any]:
    """What lm-eval's own --config file says; a wrong one is lm-eval's to refuse."""
    if (file := getattr(given, "config", None)) is None:
        return {}
    try:
        values = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return values if isinstance(values, Mapping) else {}


def _add_our_tasks(given: Namespace) -> None:
    """Beside lm-eval's own, where tasks are named and no other folder of tasks is."""
    from proxytune.tasks import TASKS_DIR, task_manager

    names = getattr(given, "tasks", None)
    if not names or given.include_path is not None or "include_path" in _file(given):
        return
    given.include_path = str(TASKS_DIR)
    ours = task_manager()
    for name in ours.match_tasks(names):
        if given.command == "run" and (ours.task_index[name].cfg or {}).get("dataset_path") == "json":
            raise UserError(
                f"--tasks {name}: the task has only local data, and lm-eval's command line cannot say where: "
                f"use proxytune run with task.names=[{name}] and task.data_dir=FOLDER"
            )
