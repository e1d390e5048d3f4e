"""Experiments: family x arms x tasks -> records, with an answer store and the statistics of the gap closed.

`run` loads its module, and with it lm-eval, when it is first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proxytune.experiment.planning import check_run
    from proxytune.experiment.runner import run

__all__ = ["check_run", "run"]


def __getattr__(name: str) -> Any:
    if name == "check_run":
        from proxytune.experiment.planning import check_run

        return check_run
    if name == "run":
        from proxytune.experiment.runner import run

        return run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
