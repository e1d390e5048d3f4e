"""lm-evaluation-harness documents its command line and its task YAMLs, but nearly none of its Python interface."""

from __future__ import annotations

import functools
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lm_eval.api.task
import lm_eval.utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM as TemplateLM
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.models.utils import DEFAULT_MAX_LENGTH, handle_stop_sequences, normalize_gen_kwargs
from lm_eval.tasks import TaskManager

from proxytune.compat import Name
from proxytune.console import quiet_logger

NAMES = (
    Name("lm_eval.api.task", "tqdm", "the bar over prompts has no switch"),
    Name("lm_eval.utils", "env", "each of a task's templates is compiled anew for every item"),
    Name("lm_eval.models.utils", "DEFAULT_MAX_LENGTH", "HFLM's window where no model says its own"),
    Name("lm_eval.models.utils", "handle_stop_sequences", "the same stop strings as HFLM"),
    Name("lm_eval.models.utils", "normalize_gen_kwargs", "the same generation settings as HFLM"),
    Name("lm_eval.api.model", "TemplateLM", "HFLM's own base: importing HFLM takes seconds"),
    Name("lm_eval.api.model:TemplateLM", "_loglikelihood_tokens", "lm-eval tokenises, we score", overridden=True),
    Name("lm_eval.api.model:TemplateLM", "_encode_pair", "the same split of a text as HFLM"),
    Name("lm_eval.utils", "get_rolling_token_windows", "the same windows as HFLM"),
    Name("lm_eval.utils", "make_disjoint_window", "the same windows as HFLM"),
    Name("lm_eval.api.task:Task", "build_all_requests", "requests are built once for all arms", overridden=True),
    Name("lm_eval.api.task:Task", "doc_iterator", "a limit is spread over the subjects of a task", overridden=True),
    Name("lm_eval.api.task:Task", "instances", "the requests of a task, which hold the last arm's answers"),
    Name("lm_eval.api.task:Task", "_filters", "an item is scored while others are still being answered"),
    Name("lm_eval.api.samplers:ContextSampler", "df", "the pool of few-shot examples"),
    Name("lm_eval.api.samplers:ContextSampler", "replace_df", "examples of the item's own subject"),
    Name("lm_eval.__main__", "HarnessCLI", "what its command line parsed is completed before it runs"),
    Name("lm_eval.__main__", "setup_logging", "as its command line begins"),
    Name("lm_eval.tasks._index:Entry", "cfg", "a task's YAML before its functions are imported"),
    Name("lm_eval.tasks._index:Entry", "yaml_path", "the file to name in an error message"),
)

DEFAULT_WINDOW: int = DEFAULT_MAX_LENGTH
TEMPLATES = 1000
"""The most compiled templates that are kept: a task has a few."""
stop_strings = handle_stop_sequences
generation_settings = normalize_gen_kwargs


def rolling_windows(tokens: list[int], prefix: int, length: int) -> list[tuple[list[int], list[int]]]:
    """(context, continuation) for each window of a text of `tokens`; `prefix` stands before the first token."""
    windows = lm_eval.utils.get_rolling_token_windows(tokens, prefix, max_seq_len=length, context_len=1)
    return [lm_eval.utils.make_disjoint_window(window) for window in windows]


@contextmanager
def compiled_once() -> Iterator[None]:
    """With each Jinja template of the tasks compiled once, not for every item and arm."""
    environment: Any = lm_eval.utils.env
    environment.from_string = functools.lru_cache(TEMPLATES)(environment.from_string)
    try:
        yield
    finally:
        del environment.from_string


@contextmanager
def quiet() -> Iterator[None]:
    """Without lm-eval's bars and log lines below errors; whatever else writes to standard error is seen.

    Tokenizers do not warn of prompts longer than the window: they are cut to fit, and the results record that.
    """
    bar = lm_eval.api.task.tqdm
    lm_eval.api.task.tqdm = functools.partial(bar, disable=True)
    try:
        with quiet_logger("lm_eval"), quiet_logger("transformers.tokenization_utils_base"):
            yield
    finally:
        lm_eval.api.task.tqdm = bar


def keep_only_requests(task: Task) -> None:
    """Makes the task forget its answers and keep its requests, so that the next arm gets exactly the same.

    Building the requests anew for every arm would take most of the time that is not spent in models.
    """
    for request in task.instances:
        request.resps, request.filtered_resps = [], {}
    task.build_all_requests = lambda **_: None  # type: ignore[method-assign]


def score_item(task: Task, instances: Sequence[Instance], filter_name: str) -> Mapping[str, Any]:
    """Metric -> value of one item, as `lm_eval.evaluate` scores it. `instances` are all of it and hold its answers."""
    for one in task._filters:
        if one.name == filter_name:
            one.apply(instances)
    return task.process_results(instances[0].doc, [instance.filtered_resps[filter_name] for instance in instances])


def run_command_line(arguments: Sequence[str], complete: Callable[[Namespace], object]) -> None:
    """lm-eval's own command line with `arguments`, which it reads from `sys.argv`; `complete` sees what it parsed."""
    from lm_eval.__main__ import HarnessCLI, setup_logging

    setup_logging()
    argv, sys.argv = sys.argv, ["proxytune lm-eval", *arguments]
    try:
        command = HarnessCLI()
        given = command.parse_args()
        complete(given)
        command.execute(given)
    finally:
        sys.argv = argv


def task_yaml(manager: TaskManager, name: str) -> tuple[Mapping[str, Any], Path | None]:
    """A task's YAML as lm-eval's index holds it, functions not imported, and its file."""
    entry = manager.task_index[name]
    return entry.cfg or {}, entry.yaml_path


def fewshot_examples(task: ConfigurableTask) -> Sequence[Mapping[str, Any]]:
    """The documents that few-shot examples of `task` are taken from."""
    return task.sampler.df


def most_fewshot_examples(task: ConfigurableTask) -> int:
    """How many examples a prompt of `task` can have: lm-eval draws one more where the item itself may be among them."""
    return len(task.sampler.df) - (task.config.fewshot_split == task.config.test_split)


def set_fewshot_examples(task: ConfigurableTask, examples: Sequence[Mapping[str, Any]]) -> None:
    task.sampler.replace_df(examples)
