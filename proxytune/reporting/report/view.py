"""One run as the page's template shows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import yaml

from proxytune.record import FILE, ArmCost, ArmRecord, MemberRecord, Record, TaskRecord
from proxytune.reporting.columns import Cell
from proxytune.reporting.report.source import Run
from proxytune.reporting.tables import Table, in_order


@dataclass(frozen=True)
class View:
    run: Run
    name: str

    @property
    def title(self) -> str:
        return str(self.run.config.get("experiment") or self.name)

    @property
    def facts(self) -> dict[str, str]:
        """What ran, in a few lines; what is not known is left out."""
        provenance = self.run.record.provenance
        facts = {
            "Folder": str(self.run.folder),
            "Finished": self._finished(),
            "Command line": " ".join(self.run.overrides),
            "Code": _pairs({name: value and value[:12] for name, value in provenance.code.items()}),
            "Items": self._items(),
            "Seed": str(provenance.seed) if self.run.record.tasks else "",
            "Time": _seconds(provenance.timings.total_seconds),
            "Machine": _pairs(provenance.machine),
            "Libraries": _pairs(provenance.libraries),
        }
        return {name: value for name, value in facts.items() if value}

    def _finished(self) -> str:
        path = self.run.folder / FILE
        return f"{datetime.fromtimestamp(path.stat().st_mtime):%Y-%m-%d %H:%M}" if path.is_file() else ""

    def _items(self) -> str:
        counts = ", ".join(f"{name} {task.n}" for name, task in self.run.record.tasks.items())
        provenance = self.run.record.provenance
        limit = "" if provenance.limit is None else f"; limit {provenance.limit} of each task"
        shots = "" if provenance.num_fewshot is None else f"; {provenance.num_fewshot} examples in each prompt"
        return counts and counts + limit + shots

    @property
    def arms(self) -> dict[str, tuple[ArmRecord, str]]:
        """Arm -> its record of some task, and the roles it takes."""
        arms: dict[str, tuple[ArmRecord, str]] = {}
        for task in self.run.record.tasks.values():
            for name, arm in task.arms.items():
                arms.setdefault(name, (arm, ", ".join(_roles(task, arm))))
        return arms

    @property
    def config(self) -> str:
        return yaml.safe_dump(self.run.config, sort_keys=False, allow_unicode=True) if self.run.config else ""


def _roles(task: TaskRecord, arm: ArmRecord) -> Iterator[str]:
    """The arm's roles; the task's own expert and tuned model without their names, which differ between tasks."""
    for role in arm.roles:
        kind, _, name = role.partition(":")
        yield f"{kind} of the task" if name and name == task.expert else role


def cost_table(record: Record) -> Table:
    """Arms down, tasks across: seconds and tokens per second of each arm, and last the size of its models."""
    costs = record.provenance.timings.costs
    found = {arm: [task.arms.get(arm) for task in costs.values()] for arm in in_order(record.tasks)}
    rows = {arm: [*map(_cost, some), _size(some)] for arm, some in found.items() if any(some)}
    return Table("Cost of each arm: seconds, tokens per second", [*costs, "weights"], rows)


def _cost(cost: ArmCost | None) -> Cell:
    if cost is None:
        return Cell("·")
    speed = cost.tokens_per_second
    return Cell(f"{cost.seconds:.3g} s" + ("" if speed is None else f", {speed:,.{0 if speed > 10 else 1}f}/s"))


def _size(costs: Sequence[ArmCost | None]) -> Cell:
    """The most that any task takes."""
    most = max(cost.weights for cost in costs if cost is not None)
    return Cell(f"{most / 2**30:.3g} GiB" if most > 2**30 else f"{most / 2**20:.3g} MiB")


def source_of(member: MemberRecord) -> str:
    """Where a member was loaded from, without the settings that are not set."""
    return _pairs({name: value for name, value in member.source.items() if value not in (False, None, "auto")})


def parameters_of(arm: ArmRecord) -> str:
    return _pairs(arm.rule.parameters) if arm.rule else ""


def _pairs(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value not in (None, "", []))


def _seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds else ""
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
