"""The experiment: a family, arms and tasks in; a record of what every arm scored out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def run(
    family: Any,
    tasks: Sequence[str],
    arms: Mapping[str, Mapping[str, Any]],
    engine_factory: Callable[..., Any],
    *,
    output_dir: str | Path,
    store_path: str | Path | None = None,
    data_dir: str | Path | None = None,
    seed: int = 0,
    limit: int | None = None,
    num_fewshot: int | None = None,
    only: Sequence[str] | None = None,
    config: Mapping[str, Any] | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Lets every arm answer every task; writes `results.json` and `items/<task>.jsonl` and returns the record.

    Args:
        family: a `FamilySpec`; only the members that some arm needs are loaded.
        tasks: names of tasks.
        arms: name -> {"model": base | antiexpert | expert | tuned | each_expert | <role>} or
            {"rule": a Rule object, "experts": "own" | "all" | [names]}; `except: [names]` leaves experts out of
            `all` and `each_expert`. See `experiment.arms`.
        engine_factory: called with the loaded ensemble, gives an engine (`HFEngine`).
        output_dir: folder of this run's results; made if need be.
        store_path: SQLite file of finished answers, shared by runs; None keeps them in memory.
        data_dir: where the tasks' data lie; None: the family's own `data_dir`, or the hub.
        seed: of few-shot sampling, decoding noise and the bootstrap.
        limit: the first items of each task only (>= 1); None: all.
        num_fewshot: overrides the tasks' own number of examples.
        only: names of the arms to evaluate; None: all.
        config: the full resolved configuration, kept in the provenance.
        progress: show progress bars; None: if standard error is a terminal.

    Raises:
        UserError: for whatever the user can mend, before models load where that can be known.

    The record, also `results.json` (numbers that are undefined are None, and `undefined` says why):

        tasks.<task>: metric, higher_is_better, expert, n, n_truncated, missing: {arm: why it is absent here}
        tasks.<task>.arms.<arm>: value, stderr, n, n_invalid, gap_closed, gap_closed_ci: [low, high],
            relative_performance, undefined: {field: reason}, metrics: {other metric: mean},
            differences: {"base" | "expert" | "tuned": {value, stderr, n}} (this arm minus that one, paired),
            roles: [role, ...], rule: None or {id, formula, paper, parameters},
            weights: {expert: {mean, sd}} (of the chosen alpha over all tokens; rules only)
        provenance: config, seed, code, versions, platform, members: {role: {...}}, timings
    """
    raise NotImplementedError
