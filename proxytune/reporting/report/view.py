"""What the page's templates show: each run, and how several runs differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import yaml

from proxytune.record import FILE, ArmCost, ArmRecord, Estimate, MemberRecord, Record, TaskRecord
from proxytune.reporting.columns import COLUMNS, Cell, Column, Notes, score_text
from proxytune.reporting.configurations import differing
from proxytune.reporting.report.source import Run
from proxytune.reporting.tables import Table, cell_of, in_order


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


REFERENCES = ("base", "expert", "tuned")


def names_of(runs: Sequence[Run]) -> list[str]:
    """A name for each run: the overrides that not all of them have, or its folder where these are not distinct."""
    shared = set.intersection(*(set(run.overrides) for run in runs)) if len(runs) > 1 else set()
    given = [", ".join(_short(override) for override in run.overrides if override not in shared) for run in runs]
    if len(runs) > 1 and all(given) and len(set(given)) == len(runs):
        return given
    folders = [run.folder.resolve().name for run in runs]
    return folders if len(set(folders)) == len(runs) else [str(run.folder) for run in runs]


def _short(override: str) -> str:
    """`arms.proxy.rule.weights=0.5` as `weights=0.5`."""
    key, equals, value = override.partition("=")
    return f"{key.rpartition('.')[2]}{equals}{value}"


def configurations(runs: Sequence[Run]) -> dict[str, list[str]]:
    """What differs in the runs' configurations, and in their versions of code and libraries."""
    made_by = [run.record.provenance for run in runs]
    versions = [{"commit": one.code.get("commit"), "libraries": one.libraries} for one in made_by]
    return differing([{**run.config, **version} for run, version in zip(runs, versions, strict=True)])


def comparisons(runs: Sequence[Run], names: Sequence[str], notes: Notes) -> list[Table]:
    """For each task and shown quantity, a table of arms down and runs across."""
    tasks = dict.fromkeys(task for run in runs for task in run.record.tasks)
    shown = [column for column in COLUMNS if column.cell is not None and not column.fused_only]
    return [_comparison(task, column, runs, names, notes) for task in tasks for column in shown]


def _comparison(task: str, column: Column, runs: Sequence[Run], names: Sequence[str], notes: Notes) -> Table:
    records = [run.record.tasks.get(task) for run in runs]
    arms = in_order({str(number): record for number, record in enumerate(records) if record})
    rows = {arm: [_cell(column, record, arm, notes) for record in records] for arm in arms}
    return Table(f"{task}: {column.title}", names, rows)


def _cell(column: Column, record: TaskRecord | None, arm: str, notes: Notes) -> Cell:
    if record is None:
        return Cell("·" + notes.mark("this run has no scores of this task"))
    return replace(cell_of(column, record, arm, notes), best=False)


def paired(record: Record) -> list[Table]:
    """For each task, every arm minus base, expert and tuned, over the same items, with the standard error."""
    return [_paired(name, task) for name, task in record.tasks.items() if task.references]


def _paired(name: str, task: TaskRecord) -> Table:
    references = [reference for reference in REFERENCES if reference in task.references]
    rows = {
        arm: [_difference(task, entry.differences.get(reference)) for reference in references]
        for arm, entry in ((arm, task.arms[arm]) for arm in in_order({name: task}))
    }
    unit = ", percentage points" if task.is_fraction else ""
    return Table(f"{name}: {task.metric}{unit}", [f"− {task.references[one]}" for one in references], rows)


def _difference(task: TaskRecord, difference: Estimate | None) -> Cell:
    """In bold where it is more than two standard errors from 0; a dot for an arm minus itself."""
    if difference is None or difference.value is None:
        return Cell("–")
    if difference.stderr_method == "exact":
        return Cell("·")
    text = score_text(task, difference.value, difference.stderr, "+z").replace("-", "−")
    return Cell(text, best=difference.stderr is not None and abs(difference.value) > 2 * difference.stderr)
