"""A record as tables of text, arms down and tasks across, with a numbered note for everything that is not a number."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from proxytune.record import ARM_KINDS, ArmRecord, EndpointUsage, Record, TaskRecord, TraceRecord
from proxytune.reporting.columns import COLUMNS, NORMAL_95, Cell, Column, Notes, score_text

Tasks = Mapping[str, TaskRecord]

LEGEND = "Gap closed = (arm − base) / (tuned − base). Bold: the best fused arm of each task."


@dataclass(frozen=True)
class Table:
    """`rows[arm]` has one cell for each of `headings`."""

    title: str
    headings: Sequence[str]
    rows: Mapping[str, Sequence[Cell]]


@dataclass(frozen=True)
class Tables:
    tables: Sequence[Table]
    """One for each of `columns.COLUMNS` that is shown."""
    notes: Sequence[str]
    """The text of note 1, 2, ..."""
    remarks: Sequence[str]
    """What else a reader needs to know: absent arms, answers that could not be judged, prompts that were cut."""
    verdict: str = ""
    """The result in one line; empty where no gap is defined."""


def tabulate(record: Record, *, full: bool = True) -> Tables:
    """The tables of a record, for the terminal if not `full`.

    An arm that no task could have is a remark, not a row; so is a table without any number.
    """
    notes = Notes()
    columns = [column for column in COLUMNS if column.cell is not None and (full or not column.fused_only)]
    reasons = [(column, _never_defined(column, record.tasks)) for column in columns]
    shown = [column for column, why in reasons if not why or column is columns[0]]
    tables = [_table(column, record.tasks, notes, first=column is shown[0]) for column in shown]
    undefined = [f"{column.title} is undefined everywhere: {why}." for column, why in reasons if why]
    remarks = [*undefined, *_behind_endpoint(record), *_remarks(record.tasks), *_ignored(record)]
    return Tables(tables, notes.texts, remarks, _verdict(record.tasks))


def _verdict(tasks: Tasks) -> str:
    """The fused arms that close most of the gap, among those whose gap is defined on as many tasks as can be."""
    gaps: dict[str, list[float]] = {}
    for task in tasks.values():
        for name, arm in task.arms.items():
            if arm.rule and arm.gap_closed is not None:
                gaps.setdefault(name, []).append(arm.gap_closed)
    most = max(map(len, gaps.values()), default=0)
    means = {name: sum(values) / most for name, values in gaps.items() if len(values) == most}
    if not means:
        return ""
    highest = max(means.values())
    best = [name for name, mean in means.items() if mean == highest]
    closes = "closes" if len(best) == 1 else "close"
    over = f"mean of {most} tasks" if len(tasks) > 1 else next(iter(tasks))
    if len(means) == 1:
        return f"{best[0]} closes {100 * highest:.1f} % of the gap ({over})."
    share = f"the largest share of the gap: {100 * highest:.1f} % ({over})"
    return f"Of {len(means)} fused arms, {' and '.join(best)} {closes} {share}."


def _never_defined(column: Column, tasks: Tasks) -> str:
    """The reasons, where the column is undefined for every arm of every task; "" where it is not."""
    entries = [arm for task in tasks.values() for arm in task.arms.values() if arm.rule or not column.fused_only]
    if any(column.field not in entry.undefined for entry in entries):
        return ""
    return "; ".join(dict.fromkeys(entry.undefined[column.field] for entry in entries))


def best_fused(task: TaskRecord) -> list[str]:
    """The arms with the best value among those with a rule; several if they are equal, none if there is no value."""
    fused = {name: arm.value for name, arm in task.arms.items() if arm.rule and arm.value is not None}
    best = (max if task.higher_is_better else min)(fused.values(), default=None)
    return [name for name, value in fused.items() if value == best]


def in_order(tasks: Tasks) -> list[str]:
    """The arms as they stand in tables: by kind, and in the order of the configuration."""
    names = dict.fromkeys(arm for task in tasks.values() for arm in task.arms)
    return sorted(names, key=lambda arm: ARM_KINDS.index(_entries(tasks, arm)[0].kind))


def _table(column: Column, tasks: Tasks, notes: Notes, *, first: bool) -> Table:
    """The column's table; metric and n stand in the headings of the first."""
    arms = in_order(tasks)
    if column.fused_only:
        arms = [arm for arm in arms if any(entry.rule for entry in _entries(tasks, arm))]
    rows = {arm: [cell_of(column, task, arm, notes) for task in tasks.values()] for arm in arms}
    start = common_start(list(tasks))
    short = {name.removeprefix(start): task for name, task in tasks.items()}
    headings = [_heading(task, name) if first else name for name, task in short.items()]
    title = f"{column.title}; tasks: {start}…" if start else column.title
    return _with_mean(Table(title or "", headings, rows), notes)


def common_start(names: list[str]) -> str:
    """What the names of several tasks begin with, up to an underscore; "" where they begin differently."""
    shared = os.path.commonprefix([name.split("_")[:-1] for name in names if names[1:]])  # noqa: RUF071
    return "".join(f"{part}_" for part in shared)


def cell_of(column: Column, task: TaskRecord, arm: str, notes: Notes) -> Cell:
    """What the column shows of an arm; a note says why where there is nothing to show."""
    if arm not in task.arms:
        return Cell("·" + notes.mark(task.missing.get(arm, "not an arm of this task")))
    assert column.cell is not None
    cell = column.cell(task, task.arms[arm], notes)
    if cell is None:
        return Cell(notes.undefined(task.arms[arm], column.field))
    return replace(cell, best=not column.fused_only and arm in best_fused(task))


def _with_mean(table: Table, notes: Notes) -> Table:
    """`table` with a column of means over the tasks, where it is one of numbers."""
    if len(table.headings) < 2 or all(cell.number is None for row in table.rows.values() for cell in row):
        return table
    rows = {arm: [*row, _mean(row, notes)] for arm, row in table.rows.items()}
    return replace(table, headings=[*table.headings, "mean"], rows=rows)


def _mean(row: Sequence[Cell], notes: Notes) -> Cell:
    numbers = [cell.number for cell in row if cell.number is not None]
    if not numbers:
        return Cell("–")
    mark = notes.mark(f"mean of {len(numbers)} of {len(row)} tasks") if len(numbers) < len(row) else ""
    return Cell(f"{sum(numbers) / len(numbers):.1f}{mark}")


def _heading(task: TaskRecord, name: str) -> str:
    unit = " %" if task.is_fraction else ""
    direction = "" if task.higher_is_better else ", lower is better"
    return f"{name}\n{task.metric}{unit}{direction}\nn = {task.n}"


def _entries(tasks: Tasks, arm: str) -> list[ArmRecord]:
    return [task.arms[arm] for task in tasks.values() if arm in task.arms]


def _remarks(tasks: Tasks) -> Iterator[str]:
    absent = {arm: why for task in tasks.values() for arm, why in task.missing.items() if not _entries(tasks, arm)}
    for arm, why in absent.items():
        yield f"No arm {arm}: {why}."
    for name, task in tasks.items():
        for remark in (*_of_arms(task), *_of_items(task)):
            yield f"{name}: {remark}."


def _of_arms(task: TaskRecord) -> Iterator[str]:
    """Which arms failed, lack items or are worse than the base."""
    for arm, entry in task.arms.items():
        if errors := list(entry.failed_items.values()):
            yield f"{arm} failed at {len(errors)} items, which are left out of its score: {errors[0]}"
    listed = {
        "items without a choice among the base's likeliest tokens, which are left out": lambda arm: arm.left_out,
        "answers that could not be judged and are left out of the score": lambda arm: (
            arm.n_invalid - len(arm.failed_items) - arm.left_out
        ),
        "significantly worse than the base (difference ± standard error)": lambda arm: _harm(task, arm),
        "items with choices that the rule excludes, which lose to all others": lambda arm: arm.ruled_out,
    }
    for remark, of_arm in listed.items():
        if found := [f"{name} {said}" for name, arm in task.arms.items() if (said := of_arm(arm))]:
            yield f"{remark}: {', '.join(found)}"


def _harm(task: TaskRecord, arm: ArmRecord) -> str:
    """The difference of a fused arm to the base, items paired, where it is worse by more than chance; or empty."""
    estimate = arm.differences.get("base")
    if arm.rule is None or estimate is None or estimate.value is None or estimate.stderr is None:
        return ""
    gain = estimate.value if task.higher_is_better else -estimate.value
    worse = gain < 0 and -gain > NORMAL_95 * estimate.stderr
    return score_text(task, estimate.value, estimate.stderr, "+") if worse else ""


def _of_items(task: TaskRecord) -> Iterator[str]:
    """How items were chosen, are grouped, traced and cut."""
    groups, beyond = task.data.groups, task.data.skipped.get("beyond the limit")
    if groups and beyond:
        reached = sum(count > 0 for count in groups.values())
        yield (
            f"{task.n} of {task.n + beyond} items, spread over the groups in proportion to their sizes: "
            f"{reached} of {len(groups)} groups have any"
        )
    if task.grouped_by is not None:
        yield f"errors and intervals are clustered by {task.grouped_by} ({task.n_groups} groups)"
    if task.trace is not None:
        yield _traced(task.trace, task.n)
    if task.n_truncated:
        yield f"{task.n_truncated} prompts were cut to the smallest window"


def _traced(trace: TraceRecord, n: int) -> str:
    if not trace.items:
        why = (
            "the answers came from the store without any" if trace.without else "its answers are scored, not generated"
        )
        return f"no traces; {why}"
    lacking = f"; {trace.without} answers came from the store without a trace" if trace.without else ""
    return f"{trace.items} of {n} items have traces of their tokens ({trace.level}){lacking}"


def _behind_endpoint(record: Record) -> Iterator[str]:
    """What is known of a base behind an endpoint, and what the base and a judge were asked."""
    timings = record.provenance.timings
    for task, usage in timings.judge.items():
        yield f"{task}: the judge took {_spent(usage)}."
    source = record.provenance.members["base"].source if "base" in record.provenance.members else {}
    if "api" not in source:
        return
    yield (
        f"base is {source['model']} at {source['api']}: at each step only its {source['top_logprobs']} likeliest "
        "tokens are known. All others are excluded, and probabilities are normalised over these tokens."
    )
    for task, usage in timings.endpoint.items():
        yield f"{task}: {_spent(usage)}."
    if timings.endpoint_aborted.requests:
        yield f"Runs before this one that failed or were stopped: {_spent(timings.endpoint_aborted)}."


def _spent(usage: EndpointUsage) -> str:
    return (
        f"{usage.requests} requests to the endpoint, {usage.prompt_tokens} prompt tokens, "
        f"{usage.completion_tokens} completion tokens"
    )


def _ignored(record: Record) -> Iterator[str]:
    """Generation settings of models that would have changed their answers."""
    arms = [arm for task in record.tasks.values() for arm in task.arms.values() if arm.end_tokens is not None]
    generate = {role for arm in arms for role in arm.roles}
    members: dict[str, list[str]] = {}
    for role, member in record.provenance.members.items():
        if role in generate and member.ignored:
            settings = ", ".join(f"{name}={value}" for name, value in member.ignored.items())
            members.setdefault(settings, []).append(role)
    if members:
        named = "; ".join(f"{settings} ({', '.join(roles)})" for settings, roles in members.items())
        yield f"Answers are decoded as the tasks say; settings of generation_config that are not applied: {named}."
