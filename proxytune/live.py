"""The live table of a run: arms down and tasks across, as in the report that follows it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from proxytune.console import showing
from proxytune.progress import ArmProgress, Progress, TaskProgress

PER_SECOND = 4


@contextmanager
def display(progress: Progress) -> Iterator[None]:
    """Shows `progress` on standard error while it lasts; nothing of it is left when the report comes."""
    console = Console(stderr=True)
    table = Live(
        get_renderable=lambda: render(progress, console.width),
        console=console,
        refresh_per_second=PER_SECOND,
        transient=True,
    )
    with table, showing(table):
        yield


def render(progress: Progress, width: int) -> Group:
    """The table at this moment, with those tasks that fit into `width` columns, and a line for the run below it."""
    shown = _fitting(progress, width)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("arm", overflow="ellipsis", no_wrap=True)
    for name in shown:
        table.add_column(Text("\n".join(_heading(name, progress.tasks[name]))), justify="right", no_wrap=True)
    for arm in _arms(progress):
        cells = (_cell(task.arms.get(arm), task) for task in (progress.tasks[name] for name in shown))
        table.add_row(Text(arm), *cells)
    return Group(table, Text(_foot(progress, len(shown)), style="dim"))


def _arms(progress: Progress) -> list[str]:
    return list(dict.fromkeys(arm for task in progress.tasks.values() for arm in task.arms))


def _heading(name: str, task: TaskProgress) -> list[str]:
    """Task and metric; the items answered by the slowest arm; the pace, and the time left."""
    done = min((arm.items for arm in task.arms.values()), default=0)
    items = "waiting" if task.items is None else f"{done} of {task.items}"
    pace = "" if task.tokens_per_second is None else f"{task.tokens_per_second:,.0f} tokens/s"
    if task.ended is not None:
        left = f"took {duration(task.seconds)}"
    else:
        left = "" if task.seconds_left is None else f"{duration(task.seconds_left)} left"
    return [name, task.metric, items, pace, left]


def _cell(arm: ArmProgress | None, task: TaskProgress) -> Text:
    """The metric with its error so far; behind it the items it is of, until that is all of them."""
    if arm is None or arm.failed:
        return Text("·" if arm is None else "failed", style="dim")
    digits = 1 if task.scale == 100 else 3
    value = "" if arm.value is None else f"{arm.value * task.scale:.{digits}f}"
    error = "" if arm.stderr is None else f" ± {arm.stderr * task.scale:.{digits}f}"
    if task.ended is not None:
        return Text(value + error)
    return Text(f"{value}{error} ({arm.items})" if arm.items else "", style="dim")


def _foot(progress: Progress, shown: int) -> str:
    done = sum(task.ended is not None for task in progress.tasks.values())
    parts = [f"{done} of {len(progress.tasks)} tasks done", f"{progress.answers:,} answers", duration(progress.seconds)]
    if shown < len(progress.tasks):
        parts.append("make the window wider to see more tasks")
    return " · ".join(parts)


def _fitting(progress: Progress, width: int) -> list[str]:
    """The names of the tasks that fit, in order: the one being answered, those before it, and those after it."""
    names = list(progress.tasks)
    current = next((i for i, name in enumerate(names) if progress.tasks[name].ended is None), len(names) - 1)
    space = width - max(map(len, ["arm", *_arms(progress)]))
    chosen: list[int] = []
    for i in [*range(current, -1, -1), *range(current + 1, len(names))]:
        space -= 3 + _needed(names[i], progress.tasks[names[i]])
        if space < 0 and chosen:
            break
        chosen.append(i)
    return [names[i] for i in sorted(chosen)]


def _needed(name: str, task: TaskProgress) -> int:
    cells = [len(_cell(arm, task)) for arm in task.arms.values()]
    return max(*map(len, _heading(name, task)), *cells, len("100.0 ± 10.0"))


def duration(seconds: float) -> str:
    """As 0:07, 12:05 or 3:02:01."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
