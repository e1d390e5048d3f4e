"""How a run ends that did not end well: what is kept, and how to go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from proxytune.errors import UserError
from proxytune.record import Record


@contextmanager
def resume_hint(store: str | None) -> Iterator[None]:
    """A Ctrl-C within says how to go on, and so does a bug's traceback."""
    kept = "nothing was kept (store=null)" if store is None else f"the same command goes on from {store}"
    try:
        yield
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(kept) from stop
    except UserError:
        raise
    except Exception as bug:
        bug.add_note(f"This is an error of the program, not of its input; {kept}.")
        raise


def check_failures(record: Record, output_dir: Path) -> None:
    """Raises UserError if an arm failed: the run's exit status must say so."""
    failed = [f"{arm} on {task} ({why})" for task, arms in record.failed.items() for arm, why in arms.items()]
    if failed:
        raise UserError(
            f"{len(failed)} of the arms failed: {'; '.join(failed)}. All others are in {output_dir}; once the cause is "
            "mended, the same command computes only what is missing"
        )
