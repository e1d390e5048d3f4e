"""The headline metric while answers come in, item by item, as lm-eval scores them at the end."""

from __future__ import annotations

import copy
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

from lm_eval.api.instance import Instance
from lm_eval.api.task import Task

from proxytune.compat.lm_eval import score_item
from proxytune.engines.requests import Answer, Generated
from proxytune.progress import TaskProgress
from proxytune.tasks import TaskInfo

log = logging.getLogger(__name__)


class Running:
    """Scores an arm's item as soon as all its answers are there, and notes it in `progress`."""

    def __init__(self, task: Task, info: TaskInfo, progress: TaskProgress, changed: Callable[[], object]) -> None:
        """`changed` is called after each answer."""
        self.task, self.info, self.progress, self.changed = task, info, progress, changed
        self._waiting: dict[str, list[tuple[str, Instance]]] = defaultdict(list)
        """Key of an answer -> the arms and instances that it answers."""
        self._needed: Counter[int] = Counter()
        """Item -> answers that it takes."""
        self._replies: dict[tuple[str, int], list[tuple[Instance, str | tuple[float, bool]]]] = defaultdict(list)

    def expect(self, instances: Sequence[Instance], keys: Sequence[Mapping[str, str]]) -> None:
        """Each instance's answers will come under these keys, by arm."""
        self._needed = Counter({})
        for instance in self.task.instances:
            self._needed[_item(instance)] += instance.repeats or 1
        for instance, of_arm in zip(instances, keys, strict=True):
            for arm, key in of_arm.items():
                self._waiting[key].append((arm, instance))
        self.progress.items = len(self._needed)
        self.progress.answers_total += len({key for of_arm in keys for key in of_arm.values()})
        self.progress.began = time.monotonic()

    def answered(self, key: str, answer: Answer, *, computed: bool) -> None:
        """Notes one answer; again, where an arm is tried anew, it has no effect."""
        if key not in self._waiting:
            return
        self.progress.answers += 1
        if computed:
            self.progress.computed += 1
            self.progress.tokens += len(answer.tokens if isinstance(answer, Generated) else answer.logprobs)
        for arm, instance in self._waiting.pop(key):
            self._reply(arm, instance, answer)
        self.changed()

    def _reply(self, arm: str, instance: Instance, answer: Answer) -> None:
        item = _item(instance)
        replies = self._replies[arm, item]
        replies.append((instance, _reply(answer)))
        if len(replies) == self._needed[item]:
            del self._replies[arm, item]
            self.progress.arms[arm].add(self._score(replies))

    def _score(self, replies: Sequence[tuple[Instance, str | tuple[float, bool]]]) -> float | None:
        """The item's value; None where lm-eval does not give one number per item, which it reports at the end."""
        instances: dict[int, Instance] = {}
        for instance, reply in replies:
            if id(instance) not in instances:
                instances[id(instance)] = copy.copy(instance)
                instances[id(instance)].resps, instances[id(instance)].filtered_resps = [], {}
            instances[id(instance)].resps.append(reply)
        try:
            scores = score_item(self.task, sorted(instances.values(), key=lambda one: one.idx), self.info.filter)
            return float(scores[self.info.metric])
        except Exception as error:  # a number to look at must not fail an arm; scoring at the end raises it again
            log.debug("no running %s: %s", self.info.metric, error)
            return None


def _item(instance: Instance) -> int:
    assert instance.doc_id is not None
    return instance.doc_id


def _reply(answer: Answer) -> str | tuple[float, bool]:
    """What lm-eval is given for the answer."""
    return answer.text if isinstance(answer, Generated) else (sum(answer.logprobs), all(answer.greedy))
