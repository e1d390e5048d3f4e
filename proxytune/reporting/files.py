"""The report files of a run: `table.md` and `results.csv`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from proxytune.atomic import write_text
from proxytune.record import ArmRecord, Record, TaskRecord
from proxytune.reporting.columns import COLUMNS, Cell
from proxytune.reporting.tables import LEGEND, Table, tabulate

if TYPE_CHECKING:
    import pandas as pd


def write(record: Record, folder: str | Path) -> None:
    """Writes `table.md` and `results.csv` into `folder`, each complete or not at all; raises UserError if it cannot."""
    write_text(Path(folder) / "table.md", markdown(record))
    write_text(Path(folder) / "results.csv", tidy(record).to_csv(index=False))


def markdown(record: Record) -> str:
    """All tables, with every note, as one Markdown document."""
    made = tabulate(record)
    parts = [_table(table) for table in made.tables if table.rows]
    parts.append(LEGEND)
    parts += [f"{number}. {note}" for number, note in enumerate(made.notes, start=1)]
    parts += [*made.remarks, *filter(None, [made.verdict])]
    return "\n\n".join(parts) + "\n"


def tidy(record: Record) -> pd.DataFrame:
    """A row for each task, arm and metric; all but value and n is that of the headline metric."""
    import pandas as pd

    rows = [
        row
        for task_name, task in record.tasks.items()
        for arm_name, arm in task.arms.items()
        for row in _rows({"task": task_name, "arm": arm_name}, task, arm)
    ]
    names = (name for column in COLUMNS for name in column.csv)
    return pd.DataFrame(rows, columns=["task", "arm", "rule", "metric", "headline", *names])


def _rows(key: dict[str, str], task: TaskRecord, arm: ArmRecord) -> Iterator[dict[str, object]]:
    shared = {**key, "rule": arm.rule and arm.rule.id}
    values = {name: value(arm) for column in COLUMNS for name, value in column.csv.items()}
    yield {**shared, "metric": task.metric, "headline": True, **values}
    for metric, value in arm.metrics.items():
        if metric != task.metric:
            yield {**shared, "metric": metric, "headline": False, "value": value, "n": arm.n}


def _table(table: Table) -> str:
    header = ["arm", *(heading.replace("\n", "<br>") for heading in table.headings)]
    lines = [markdown_row(header), "|---|" + "--:|" * len(table.headings)]
    lines += [markdown_row([arm, *cells]) for arm, cells in table.rows.items()]
    return f"**{table.title}**\n\n" + "\n".join(lines)


def markdown_row(cells: Iterable[str | Cell]) -> str:
    texts = (cell if isinstance(cell, str) else f"**{cell.text}**" if cell.best else cell.text for cell in cells)
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"
