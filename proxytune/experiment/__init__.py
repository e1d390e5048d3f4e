"""Experiments: family x arms x tasks -> records, with an answer store and the statistics of the gap closed.

`run` loads its module, and with it lm-eval, when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proxytune.experiment.ledger import is_of
    from proxytune.experiment.planning import check_run
    from proxytune.experiment.runner import run

__all__ = ["check_run", "is_of", "run"]
_MODULES = {"check_run": "planning", "is_of": "ledger", "run": "runner"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
