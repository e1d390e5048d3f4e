"""What the members read of one item: the requests of a run, without their answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

from proxytune.compat.lm_eval import quiet
from proxytune.engines.requests import Answer, Generated, GenerateRequest, Request, Scored
from proxytune.errors import UserError
from proxytune.experiment.answers.shared import Engine, SharedAnswers
from proxytune.experiment.answers.store import AnswerStore
from proxytune.experiment.lm_eval.arm_model import ArmLM
from proxytune.experiment.planning import Items, Plan
from proxytune.fusion.arm import Arm
from proxytune.models.facts import MemberFacts, Members


@dataclass(frozen=True)
class ItemRequest:
    """One request of an item, as an engine gets it."""

    request: Request
    cut: int
    """Tokens of the prompt's beginning that did not fit and were left out."""
    times: int
    """How often it is answered (with different noise)."""


def requests_of(ensemble: Members[MemberFacts], plan: Plan, items: Items, item: int) -> list[ItemRequest]:
    """What a run of `plan` asks of its members at `item`: for an answer to generate, or for each choice to score.

    `ensemble` needs no weights. Raises UserError for an item that the run does not evaluate.
    """
    task, listener = plan.lm_task, _Listener(ensemble, list(plan.arms.present.values()))
    task.set_fewshot_seed(items.seed)
    with quiet():
        lm = ArmLM(listener, listener.arms[0], items.seed)
        task.build_all_requests(limit=items.limit)  # all: few-shot examples are drawn item by item
        instances = [instance for instance in task.instances if instance.doc_id == item]
        if not instances:
            raise UserError(f"item={item} is not among the items of {plan.task}{_which(plan, items)}")
        asked = []
        for instance in instances:
            getattr(lm, instance.request_type)([instance])
            cuts = [one.cut for one in lm.item_answers[item][-len(listener.asked) :]]
            asked += [
                ItemRequest(request, cut, instance.repeats or 1)
                for request, cut in zip(listener.asked, cuts, strict=True)
            ]
    return asked


def _which(plan: Plan, items: Items) -> str:
    """Which items there are."""
    of_task = {instance.doc_id for instance in plan.lm_task.instances}
    if len(of_task) == max(of_task) + 1:
        return f", which are 0 to {max(of_task)}" + ("" if items.limit is None else f" with limit={items.limit}")
    return f" with limit={items.limit}, which are {', '.join(map(str, sorted(of_task)))}"


class _Listener(SharedAnswers):
    """Keeps the last requests, and answers anything."""

    def __init__(self, ensemble: Members[MemberFacts], arms: Sequence[Arm]) -> None:
        super().__init__(cast(Engine, SimpleNamespace(ensemble=ensemble)), arms, AnswerStore(None))
        self.asked: list[Request] = []

    def answer(self, arm: Arm, requests: Sequence[Request], instances: Sequence[Any] = ()) -> list[Any]:
        self.asked = list(requests)
        return [_anything(request) for request in requests]


def _anything(request: Request) -> Answer:
    if isinstance(request, GenerateRequest):
        return Generated((), "", (), "length")
    return Scored((0.0,) * len(request.continuation), (False,) * len(request.continuation), ())
