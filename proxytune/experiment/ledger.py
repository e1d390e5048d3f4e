"""What a run records about itself while it works."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from proxytune.errors import UserError
from proxytune.experiment.answers.shared import LazyEngine, SharedAnswers
from proxytune.models import FamilySpec, Members, identity
from proxytune.provenance import code_facts, library_versions, machine_facts, peak_memory
from proxytune.record import Answers, ArmCost, EndpointUsage, MemberRecord, Provenance, Record, TaskCosts, Timings


class Ledger:
    """What a run notes about itself as it goes: its members, and what took how long."""

    def __init__(self) -> None:
        self.damaged = 0
        self._start = time.perf_counter()
        self._members: dict[str, MemberRecord] = {}
        self._seconds: dict[str, dict[str, float]] = {"load_seconds": {}, "task_seconds": {}}
        self._answers: dict[str, Answers] = {}
        self._batch_sizes: dict[str, int | None] = {}
        self._memory: dict[str, int] = {}
        self._costs: dict[str, TaskCosts] = {}
        self._endpoint: dict[str, EndpointUsage] = {}
        self._judge: dict[str, EndpointUsage] = {}
        self.aborted = EndpointUsage()

    @contextmanager
    def time(self, what: Literal["load_seconds", "task_seconds"], task: str) -> Iterator[None]:
        """The time of what is within; that of loading a task's models is no part of the task's own."""
        start, before = time.perf_counter(), self._seconds["load_seconds"].get(task, 0.0)
        yield
        loading = 0.0 if what == "load_seconds" else self._seconds["load_seconds"].get(task, 0.0) - before
        self._seconds[what][task] = round(_since(start) - loading, 3)

    def note(self, task: str, family: FamilySpec, shared: SharedAnswers) -> None:
        self._answers[task] = Answers(computed=shared.computed, from_store=shared.read)
        self._batch_sizes[task] = getattr(shared.engine, "batch_size", None)
        self._memory[task] = peak_memory()
        if (costs := _costs(shared)).arms:
            self._costs[task] = costs
        self._note_usage(task, shared.engine)
        self._members |= {role: _member(family, shared.ensemble, role) for role in shared.roles}

    def _note_usage(self, task: str, engine: Any) -> None:
        if (usage := _taken_usage(engine)).requests:
            self._endpoint[task] = usage

    def note_judge(self, task: str, spent: Mapping[str, int]) -> None:
        """What a judge behind an endpoint was asked; empty if there is none."""
        if spent.get("requests"):
            self._judge[task] = EndpointUsage(**spent)

    def usage(self, engine: Any) -> EndpointUsage:
        """What an endpoint was asked for all tasks so far, including by `engine`, that of the current task."""
        parts = [*self._endpoint.values(), _taken_usage(engine)]
        return EndpointUsage(
            **{name: sum(getattr(part, name) for part in parts) for name in EndpointUsage.model_fields}
        )

    def provenance(self, **asked: Any) -> Provenance:
        """`asked` are the settings of the run: config, seed, limit and num_fewshot."""
        return Provenance(
            **asked,
            code=code_facts(),
            libraries=library_versions(),
            machine=machine_facts(),
            members=dict(sorted(self._members.items())),
            timings=Timings(
                total_seconds=_since(self._start),
                load_seconds=self._seconds["load_seconds"],
                task_seconds=self._seconds["task_seconds"],
                peak_memory=self._memory,
                answers=self._answers,
                batch_size=self._batch_sizes,
                costs=self._costs,
                damaged_store_entries=self.damaged,
                endpoint=self._endpoint,
                endpoint_aborted=self.aborted,
                judge=self._judge,
            ),
        )


def _taken_usage(engine: Any) -> EndpointUsage:
    """What the model behind an endpoint was asked since the last call, if one is loaded."""
    loaded = engine.loaded if isinstance(engine, LazyEngine) else engine
    remote = [member for member in loaded.ensemble.members.values() if member.remote] if loaded is not None else []
    return EndpointUsage(**vars(remote[0].client.take_usage())) if remote else EndpointUsage()


def _costs(shared: SharedAnswers) -> TaskCosts:
    """What the engine says; arms that answer like another one, which was computed for both, have its costs."""
    taken: TaskCosts = getattr(shared.engine, "take_costs", TaskCosts)()
    alike = {shared.keys.of_arm[name]: cost for name, cost in taken.arms.items()}
    keys = {arm.name: shared.keys.of_arm[arm.name] for arm in shared.arms}
    return TaskCosts(
        arms={name: _rounded(alike[key]) for name, key in keys.items() if key in alike},
        members={role: round(seconds, 3) for role, seconds in taken.members.items()},
        drafts=taken.drafts,
        bandwidth=taken.bandwidth,
    )


def _rounded(cost: ArmCost) -> ArmCost:
    return cost.model_copy(update={"seconds": round(cost.seconds, 3)})


def _member(family: FamilySpec, ensemble: Members[Any], role: str) -> MemberRecord:
    """What determines its answers, its number type, and the source it was loaded from."""
    return MemberRecord(
        identity=ensemble[role].identity,
        dtype=str(ensemble[role].dtype).removeprefix("torch."),
        source={name: value for name, value in asdict(family.sources[role]).items() if value is not None},
        ignored=dict(ensemble[role].ignored),
    )


def is_of(record: Record, family: FamilySpec) -> bool:
    """Whether the family's models and the files of data are still those that the record was made of."""
    members = record.provenance.members
    data = [(task.data.file, task.data.sha256) for task in record.tasks.values() if task.data.file is not None]
    try:
        same = all(identity(family.sources[role]) == member.identity for role, member in members.items())
        return same and all(sha256(Path(file).read_bytes()).hexdigest() == digest for file, digest in data)
    except (KeyError, OSError, UserError):
        return False


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 3)
