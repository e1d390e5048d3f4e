"""`proxytune lm-eval`: lm-evaluation-harness's own command line, which knows `--model proxytune` and our tasks besides.

    proxytune lm-eval --model proxytune --model_args base=LARGE,expert=TUNED,antiexpert=SMALL,alpha=1.0 --tasks gsm8k
    proxytune lm-eval --model proxytune --model_args pretrained=FOLDER --tasks gsm8k

The parts of --model_args: proxytune/experiment/harness.py. All else is lm-eval's: proxytune lm-eval run --help.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Runs lm-eval's command line with `arguments`; returns its exit status, 0 if it sets none."""
    from lm_eval.__main__ import cli_evaluate

    import proxytune.experiment.harness  # noqa: F401  registers the model
    from proxytune.tasks import TASKS_DIR

    if "--tasks" in arguments and "--include_path" not in arguments:
        arguments = [*arguments, "--include_path", str(TASKS_DIR)]
    argv, sys.argv = sys.argv, ["proxytune lm-eval", *arguments]
    try:
        cli_evaluate()
    finally:
        sys.argv = argv
    return 0
