"""`proxytune runs`: the finished runs of a folder, a run's tables again, and clearing out the store of answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from proxytune.cli.arguments import key_values, wants_help
from proxytune.errors import UserError, unknown_name
from proxytune.folders import cache_root

ACTIONS = {
    "list": "list [FOLDER] [tag=TAG] [task=TASK] [key=value ...] [sort=KEY]: the finished runs under FOLDER "
    "(default: outputs), how they differ and what came out; only those with the tag, a task whose name begins so, and "
    "these values of keys; by date, or by the value of KEY",
    "show": "show FOLDER: the tables of a finished run",
    "gc": "gc [store=FILE] [older_than=DAYS] [dry_run=true]: removes from the store of answers what is damaged, what "
    "another version wrote, and what is older than DAYS; dry_run only counts",
}
GC_KEYS = {
    "store": "a file of finished answers",
    "older_than": "a number of days from 0, or null for any age",
    "dry_run": "true or false",
}


def main(arguments: Sequence[str]) -> int:
    """`proxytune runs list|show|gc ...`; raises UserError for the user's mistakes."""
    if not arguments or wants_help(arguments):
        print("usage: proxytune runs ACTION\n\n" + "\n".join(f"  {usage}" for usage in ACTIONS.values()))
        return 0
    action, *rest = arguments
    if action not in ACTIONS:
        raise unknown_name("action of runs", action, ACTIONS)
    if action == "gc":
        _clear(key_values("runs", rest, GC_KEYS))
        return 0
    from proxytune.reporting import runs

    wanted = [argument for argument in rest if action == "list" and "=" in argument]
    folders = [argument for argument in rest if argument not in wanted]
    if len(folders) > 1 or (action == "show" and not folders):
        raise UserError(f"proxytune runs {ACTIONS[action].partition(':')[0]}: {len(folders)} folders were given")
    if action == "show":
        runs.show_run(folders[0])
    else:
        pairs = dict(pair.split("=", 1) for pair in wanted)
        sort = pairs.pop("sort", None)
        runs.list_runs(folders[0] if folders else "outputs", wanted=pairs, sort=sort)
    return 0


def _clear(given: dict[str, str]) -> None:
    older_than = _days(given.get("older_than", "null"))
    dry_run = _switch(given.get("dry_run", "false"))
    from proxytune.experiment.answers.gc import clear

    path = given.get("store", str(cache_root() / "answers.sqlite"))
    done = clear(path, older_than, dry_run)
    verb = "would go" if dry_run else "removed"
    freed = "" if dry_run else f"; {_megabytes(done.bytes_before - done.bytes_after)} freed"
    print(
        f"{Path(path).expanduser()}: {done.total} answers, {_megabytes(done.bytes_before)}; {verb}: {done.gone} "
        f"({done.damaged} damaged, {done.outdated} of another version, {done.old} old){freed}"
    )


def _days(value: str) -> float | None:
    if value == "null":
        return None
    try:
        days = float(value)
    except ValueError:
        days = math.nan
    if not 0 <= days < math.inf:
        raise UserError(f"older_than={value} is not allowed: it is {GC_KEYS['older_than']}")
    return days


def _switch(value: str) -> bool:
    if value not in ("true", "false"):
        raise UserError(f"dry_run={value} is not allowed: it is {GC_KEYS['dry_run']}")
    return value == "true"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
