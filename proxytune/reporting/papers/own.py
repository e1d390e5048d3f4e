"""A paper's layout for the user's own families: their tasks as columns, their models' names as panels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from proxytune.record import Record, TaskRecord
from proxytune.reporting.papers.layouts import Layout, Paper


def own_layout(paper: Paper, records: Sequence[Record]) -> tuple[Layout, list[str]]:
    """The layout, and the family of each record: its panel."""
    panels = _families(records)
    families = {family: family for family in panels}
    tasks = {name: task for record in records for name, task in record.tasks.items()}
    arms = dict.fromkeys([*paper.labels, *(arm for task in tasks.values() for arm in task.arms)])
    measured = {
        (family, arm)
        for family, record in zip(panels, records, strict=True)
        for task in record.tasks.values()
        for arm in task.arms
    }
    rows = {(family, arm): f"{family} {paper.labels.get(arm, arm)}" for family in families for arm in arms}
    averaged = tuple(name for name, task in tasks.items() if task.is_fraction and task.higher_is_better)
    averages = {"avg": averaged} if paper.tables[0].averages and averaged else {}
    layout = replace(
        paper.tables[0],
        id="own",
        title=f"{', '.join(families)}, laid out as in {paper.citation}",
        tasks={name: _heading(name, task) for name, task in tasks.items()} | dict.fromkeys(averages, "Avg"),
        rows={key: label for key, label in rows.items() if key in measured},
        experiments=families,
        bounds=families,
        tuned=next((task.references["tuned"] for task in tasks.values() if "tuned" in task.references), "tuned"),
        averages=averages,
        shared={},
        runs={name: name for name in tasks},
    )
    return layout, panels


def _heading(name: str, task: TaskRecord) -> str:
    unit = "" if task.is_fraction else f" ({task.metric})"
    return f"{name}{unit} {'↑' if task.higher_is_better else '↓'}"


def _families(records: Sequence[Record]) -> list[str]:
    """The name of each record's family; a number is added where other models go by the same names."""
    known: dict[str, list[object]] = {}
    names = []
    for record in records:
        members = record.provenance.members
        large = {role: members[role] for role in ("antiexpert", "base") if role in members}
        paths = [PurePosixPath(str(member.source.get("path", role))).name for role, member in large.items()]
        name = " → ".join(paths) or "unnamed"
        identity = [member.identity for member in large.values()]
        same = known.setdefault(name, [])
        if identity not in same:
            same.append(identity)
        number = same.index(identity) + 1
        names.append(name if number == 1 else f"{name} ({number})")
    return names
