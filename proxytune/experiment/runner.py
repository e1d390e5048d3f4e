"""The experiment: a family, arms and tasks in; a record of what every arm scored out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxytune.atomic import make_output_folder, write_json, write_jsonl
from proxytune.console import aside, loading_bars, quiet_logger, shows_bars
from proxytune.errors import UserError
from proxytune.execution import Isolation
from proxytune.experiment.answers.shared import ArmFailed, Engine, LazyEngine, SharedAnswers
from proxytune.experiment.answers.store import AnswerStore
from proxytune.experiment.answers.tracing import NO_TRACES, Tracing
from proxytune.experiment.arm_spec import ArmSpec
from proxytune.experiment.ledger import Ledger
from proxytune.experiment.lm_eval.evaluate import evaluate
from proxytune.experiment.lm_eval.running import Running
from proxytune.experiment.planning import Items, Plan, make_plans
from proxytune.experiment.summary import Outcome, item_rows, task_record
from proxytune.experiment.traces import write_traces
from proxytune.live import display
from proxytune.models import FamilySpec, MemberFacts, Members, describe, identity
from proxytune.models.api.endpoint import Endpoint
from proxytune.progress import ArmProgress, Progress, TaskProgress
from proxytune.record import ARM_KINDS, FILE, NO_FRACTIONS, Record, TaskRecord, TraceRecord, read_record
from proxytune.tasks import NO_JUDGES, Judged, Judges

if TYPE_CHECKING:
    from proxytune.models import Ensemble

log = logging.getLogger(__name__)


def run(
    family: FamilySpec | Mapping[str, Any],
    tasks: Sequence[str],
    arms: Mapping[str, ArmSpec | Mapping[str, Any]],
    engine_factory: Callable[..., Engine],
    *,
    output_dir: str | Path,
    store_path: str | Path | None = None,
    data_dir: str | Path | None = None,
    seed: int = 0,
    limit: int | None = None,
    num_fewshot: int | None = None,
    only: Sequence[str] | None = None,
    execution: Isolation | None = None,
    judges: Judges = NO_JUDGES,
    config: dict[str, Any] | None = None,
    progress: bool | None = None,
    tracing: Tracing = NO_TRACES,
    watch: Callable[[Progress], object] | None = None,
    loaded: LoadedModels | None = None,
) -> Record:
    """Evaluates every arm on every task; writes `results.json` and `items/<task>.jsonl` and returns the record.

    Args:
        family: where the members come from; only those that some arm needs are loaded, task by task.
        tasks: names of tasks.
        arms: name -> an `ArmSpec`, or a mapping of its fields: {"model": base | antiexpert | expert | tuned |
            each_expert | <role>} or {"rule": a Rule, "experts": "own" | "all" | [names], "base": ..., "antiexpert":
            ...}. `except: [names]` leaves experts out of `all` and `each_expert`. "expert", "tuned" and "own" belong
            to the task; `each_expert` makes one arm per expert, called "expert:<name>".
        engine_factory: makes an engine of the loaded ensemble, such as `HFEngine`. A class with `loads_members = True`
            (or a partial of it), such as `VLLMEngine`, gets the family and what is known of the members of all tasks.
        output_dir: folder of this run's results; made if need be.
        store_path: SQLite file of finished answers, shared by any runs; None keeps them in memory only.
        data_dir: where the tasks' data lie; None: the family's own `data_dir`, or the hub.
        seed: of few-shot sampling, decoding noise and the bootstrap.
        limit: number of items of each task (>= 1): the first ones, or spread over a task's subjects; None: all.
        num_fewshot: overrides the tasks' own number of examples.
        only: names of the arms to evaluate; None: all.
        execution: the isolation in which tasks run programs that the arms write; None: such tasks are refused.
        judges: the models that judge outputs, for tasks that ask for them.
        config: the full resolved configuration, kept in the provenance.
        progress: whether to show a live table; None: if standard error is a terminal, otherwise log lines.
        tracing: whether `traces/<task>.parquet` is written too, with what stood behind each generated token.
        watch: is called with how far the run is after every answer, and should be quick.
        loaded: keeps the models for a next run in this process; None: they go with this run.

    Raises:
        UserError: for whatever the user can fix, before models load where that can be known.
    """
    _check_traces(tracing, engine_factory)
    family, items = FamilySpec.of(family), Items(data_dir, limit, num_fewshot, seed)
    plans = make_plans(family, tasks, arms, only, items, execution, judges)
    make_output_folder(Path(output_dir))
    models = LoadedModels() if loaded is None else loaded
    with AnswerStore(store_path) as store:
        run = _Run(family, engine_factory, items, store, Path(output_dir), progress, tracing, watch, models)
        record = run.evaluate_all(plans, config)
    write_json(Path(output_dir) / FILE, record.model_dump())
    return read_record(output_dir)


def _task_progress(plan: Plan) -> TaskProgress:
    scale = 1.0 if plan.info.metric in NO_FRACTIONS else 100.0
    arms = sorted(plan.arms.present.values(), key=lambda arm: ARM_KINDS.index(arm.kind))
    return TaskProgress(plan.info.metric, {arm.name: ArmProgress() for arm in arms}, scale)


class LoadedModels:
    """The models that were loaded last, for runs that follow in the same process (the jobs of a sweep)."""

    def __init__(self) -> None:
        self._facts: dict[str, object] = {}
        self._ensemble: Ensemble | None = None

    def get(self, family: FamilySpec, roles: set[str]) -> Ensemble:
        """The members of `roles`: those loaded last if they are the same, else loaded in their place."""
        from proxytune.models import load  # takes seconds, and not every run needs models

        shared = (family.missing_tokens, family.end_tokens, identity(family.base))
        facts = {role: (*shared, family.sources[role], identity(family.sources[role])) for role in sorted(roles)}
        if self._ensemble is None or not facts.items() <= self._facts.items():
            # The memory that models take is told of once: other tasks' models are of the same sizes.
            with quiet_logger("proxytune.models.loading.memory") if self._facts else nullcontext():
                self._ensemble = None
                self._ensemble, self._facts = load(family, roles), dict(facts)
        return self._ensemble


@dataclass
class _Run:
    """Evaluates one task after the other, each with the members that it needs."""

    family: FamilySpec
    engine_factory: Callable[..., Engine]
    items: Items
    store: AnswerStore
    output_dir: Path
    progress: bool | None
    tracing: Tracing
    watch: Callable[[Progress], object] | None
    loaded: LoadedModels
    ledger: Ledger = field(default_factory=Ledger)
    failed: dict[str, dict[str, str]] = field(default_factory=dict)
    state: Progress = field(default_factory=lambda: Progress({}))
    known: Members[MemberFacts] | None = None
    """What is known of all members before any is loaded; None where only their weights tell."""
    _engine: Engine | None = None

    def evaluate_all(self, plans: Sequence[Plan], config: dict[str, Any] | None) -> Record:
        """The record of all tasks; `config` is kept in it."""
        self.state.tasks = {plan.task: _task_progress(plan) for plan in plans}
        if self.watch is not None:
            self.state.changed = self.watch
        with display(self.state) if shows_bars(self.progress) else nullcontext():
            self.known = describe(self.family, set().union(*(plan.roles for plan in plans)))
            try:
                done = {plan.task: self.evaluate(plan) for plan in plans}
            except BaseException:
                self.note_aborted()
                raise
        if isinstance(self.family.base, Endpoint):
            self.ledger.aborted = self.store.take_aborted(self.family.base.identity)
        self.ledger.damaged = len(self.store.damaged)
        items = self.items
        provenance = self.ledger.provenance(
            config=config, seed=items.seed, limit=items.limit, num_fewshot=items.num_fewshot
        )
        answered = {task: record for task, record in done.items() if record is not None}
        return Record(tasks=answered, failed=self.failed, provenance=provenance)

    def evaluate(self, plan: Plan) -> TaskRecord | None:
        """Evaluates every arm on the task; writes its items and returns its record, None if every arm failed."""
        present = list(plan.arms.present.values())
        state = self.state.tasks[plan.task]
        live = shows_bars(self.progress)
        watched = live or self.watch is not None
        running = Running(plan.lm_task, plan.info, state, self._changed) if watched else None
        lines = False if live else self.progress  # a live table has them all
        engine = self._engine_of(plan)
        shared = SharedAnswers(engine, present, self.store, plan.task, lines, self.tracing, running)
        with self.ledger.time("task_seconds", plan.task):
            outcomes, failed = self._outcomes(plan, shared)
            if not outcomes:
                state.end({})
                return None
            arms = plan.arms.without(failed)
            record = task_record(plan.info, arms, outcomes, self.items.seed)
            record = record.model_copy(update={"trace": self._write_traces(plan, shared, outcomes)})
            state.end({name: (arm.value, arm.stderr) for name, arm in record.arms.items()})
            self._changed()
        write_jsonl(self.output_dir / "items" / f"{plan.task}.jsonl", item_rows(plan.info, arms, outcomes))
        self.ledger.note(plan.task, self.family, shared)
        if isinstance(plan.lm_task, Judged):
            self.ledger.note_judge(plan.task, plan.lm_task.spent())
        return record

    def note_aborted(self) -> None:
        """Reports what an endpoint was asked, and keeps it for the run that resumes this one."""
        usage = self.ledger.usage(self._engine)
        if usage.requests:
            assert isinstance(self.family.base, Endpoint)
            self.store.add_aborted(self.family.base.identity, usage)
            log.warning(
                "the endpoint was asked %d requests (%d prompt tokens, %d completion tokens) before the run ended",
                *usage.model_dump().values(),
            )

    def _outcomes(self, plan: Plan, shared: SharedAnswers) -> tuple[dict[str, Outcome], dict[str, str]]:
        """What each arm does, and why it is absent for each that fails at all items."""
        outcomes, failed = {}, {}
        for name, arm in plan.arms.present.items():
            try:
                outcome = outcomes[name] = evaluate(shared, arm, plan.lm_task, plan.info, self.items)
                if outcome.failed:
                    some = (
                        f"{len(outcome.failed)} of {len(outcome.samples)} items, {next(iter(outcome.failed.values()))}"
                    )
                    self.failed.setdefault(plan.task, {})[name] = some
            except ArmFailed as error:
                self.failed.setdefault(plan.task, {})[name] = str(error)
                failed[name] = f"it failed with {error}"
        return outcomes, failed

    def _write_traces(self, plan: Plan, shared: SharedAnswers, outcomes: Mapping[str, Outcome]) -> TraceRecord | None:
        answers = {name: outcome.answers for name, outcome in outcomes.items()}
        path = self.output_dir / "traces" / f"{plan.task}.parquet"
        return write_traces(path, plan.task, self.tracing, answers, plan.arms.present, shared.ensemble.tokenizer)

    def _engine_of(self, plan: Plan) -> Engine:
        """An engine for the task, which loads its models when an answer is missing, or now if they must be known."""
        if self.known is None or len(self.store) == 0:  # an empty store: what is wrong with the models is said first
            return self._engine_for(plan)
        return LazyEngine(self.known, lambda: self._engine_for(plan), _facts(self.engine_factory))

    def _engine_for(self, plan: Plan) -> Engine:
        """The last task's engine if it has all members, else a new one; two tasks' members are never loaded at once."""
        if self._engine is None or not plan.roles <= self._engine.ensemble.members.keys():
            self._engine = None
            with self.ledger.time("load_seconds", plan.task), aside(), loading_bars(self.progress):
                self._engine = self._made(plan)
            _warn_of_surprises(self.known, self._engine.ensemble)
        return self._engine

    def _made(self, plan: Plan) -> Engine:
        if getattr(_kind(self.engine_factory), "loads_members", False):
            return self.engine_factory(self.known, self.family)
        return self.engine_factory(self.loaded.get(self.family, plan.roles))

    def _changed(self) -> None:
        self.state.changed(self.state)


def _kind(engine_factory: Callable[..., Engine]) -> Any:
    """The engine's class."""
    return getattr(engine_factory, "func", engine_factory)


def _facts(engine_factory: Callable[..., Engine]) -> Mapping[str, str] | None:
    """What the engine adds to the keys of answers, before there is one."""
    facts_with = getattr(_kind(engine_factory), "facts_with", None)
    return None if facts_with is None else facts_with(**getattr(engine_factory, "keywords", {}))


def _check_traces(tracing: Tracing, engine_factory: Callable[..., Engine]) -> None:
    """Raises UserError if traces are requested of a class of engines that records none."""
    kind = _kind(engine_factory)
    if tracing.level != "none" and isinstance(kind, type) and not getattr(kind, "traces", False):
        raise UserError(f"trace={tracing.level}: {kind.__name__} keeps no traces: use engine=hf, or trace=none")


def _warn_of_surprises(known: Members[MemberFacts] | None, loaded: Members[Any]) -> None:
    """Warns where loaded members differ from what was known when the answers' keys were made."""
    for role, before in known.members.items() if known is not None else ():
        if role not in loaded.members:
            continue
        facts = [(one.dtype, one.ends, one.window, one.missing) for one in (before, loaded[role])]
        if facts[0] != facts[1]:
            log.warning("%s: loaded as %s, but its files say %s", role, facts[1], facts[0])
