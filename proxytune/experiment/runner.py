"""The experiment: a family, arms and tasks in; a record of what every arm scored out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from proxytune.experiment.arms import ArmConfig
from proxytune.experiment.board import Board, Engine
from proxytune.experiment.evaluation import evaluate
from proxytune.experiment.files import make_output_folder, write_json, write_jsonl
from proxytune.experiment.planning import Items, Plan, make_plans
from proxytune.experiment.provenance import Ledger
from proxytune.experiment.store import AnswerStore
from proxytune.experiment.summary import items, task_record
from proxytune.models import Ensemble, FamilySpec, load


def run(
    family: FamilySpec | Mapping[str, Any],
    tasks: Sequence[str],
    arms: Mapping[str, ArmConfig],
    engine_factory: Callable[[Ensemble], Engine],
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
        family: where the members come from; only those that some arm needs are loaded, task by task.
        tasks: names of tasks.
        arms: name -> {"model": base | antiexpert | expert | tuned | each_expert | <role>} or
            {"rule": a Rule object, "experts": "own" | "all" | [names]}; `except: [names]` leaves experts out of
            `all` and `each_expert`. "expert", "tuned" and "own" are those that belong to the task; `each_expert`
            makes one arm per expert, called "expert:<name>".
        engine_factory: makes an engine of the loaded ensemble; `HFEngine`, say.
        output_dir: folder of this run's results; made if need be.
        store_path: SQLite file of finished answers, shared by any runs; None keeps them in memory only.
        data_dir: where the tasks' data lie; None: the family's own `data_dir`, or the hub.
        seed: of few-shot sampling, decoding noise and the bootstrap.
        limit: the first items of each task only (>= 1); None: all.
        num_fewshot: overrides the tasks' own number of examples.
        only: names of the arms to evaluate; None: all.
        config: the full resolved configuration, kept in the provenance.
        progress: whether to show progress bars; None: if standard error is a terminal.

    Raises:
        UserError: for whatever the user can mend, before models load where that can be known.

    The record, also `results.json` (numbers that are undefined are None, and `undefined` says why):

        tasks.<task>: metric, higher_is_better, expert, n, n_truncated (items whose prompt lost its beginning),
            missing: {arm: why it is absent here}, references: {"base" | "expert" | "tuned": arm name}
        tasks.<task>.arms.<arm>: value, stderr, n, n_invalid, gap_closed, gap_closed_ci: [low, high],
            relative_performance, undefined: {field: reason}, metrics: {metric: lm-eval's aggregate},
            differences: {"base" | "expert" | "tuned": {value, stderr, n, n_invalid}} (this arm minus that one, paired),
            roles: [role, ...], rule: None or {id, formula, paper, parameters},
            weights: {expert: {mean, sd}} (of the chosen alpha over all tokens; empty for a model alone)
        provenance: config, seed, limit, num_fewshot, code, libraries, machine, members: {role: {identity, dtype,
            source}}, timings (the only part that differs when a run is repeated)
    """
    family = FamilySpec.of(family)
    output_dir = Path(output_dir)
    wanted = Items(family.data_dir if data_dir is None else data_dir, limit, num_fewshot, seed)
    plans = make_plans(family, tasks, arms, only, wanted)
    make_output_folder(output_dir)
    ledger = Ledger()
    records = {}
    with AnswerStore(store_path) as store:
        for plan, engine in _with_engines(plans, family, engine_factory, ledger):
            board = Board(engine, list(plan.found.arms.values()), store, plan.task, progress)
            with ledger.time("task_seconds", plan.task):
                outcomes = {
                    name: evaluate(board, arm, wanted.task(plan.task), plan.info, wanted)
                    for name, arm in plan.found.arms.items()
                }
                records[plan.task] = task_record(plan.info, plan.found, outcomes, seed)
            write_jsonl(output_dir / "items" / f"{plan.task}.jsonl", items(plan.info, plan.found, outcomes))
            ledger.note(plan.task, family, board)
        ledger.damaged = len(store.damaged)
    asked = {"config": config, "seed": seed, "limit": limit, "num_fewshot": num_fewshot}
    record = {"tasks": records, "provenance": asked | ledger.provenance()}
    write_json(output_dir / "results.json", record)
    return record


def _with_engines(
    plans: Iterable[Plan], family: FamilySpec, engine_factory: Callable[[Ensemble], Engine], ledger: Ledger
) -> Iterator[tuple[Plan, Engine]]:
    """Each plan with an engine that has its members; members stay loaded while the next task needs no others."""
    engine: Engine | None = None
    for plan in plans:
        if engine is None or not plan.roles <= engine.ensemble.members.keys():
            engine = None  # lets go of the last task's members before the next ones are loaded
            with ledger.time("load_seconds", plan.task):
                engine = engine_factory(load(family, plan.roles))
        yield plan, engine
