"""The cost of each arm's answers, although arms share the models' passes.

An arm is charged an estimate of its time without the other arms: all the time in which its models read prompts; of the
time in which they read answers, the fraction of its own tokens among all distinct tokens that the model read; and the
time of its rule. A pass that three arms share therefore counts for each of them, and the arms' seconds add up to more
than the task's. The fraction of tokens is an estimate, because a batch with fewer rows takes more time per row.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, cast

from proxytune.fusion.arm import Arm
from proxytune.models.clock import copy_speed
from proxytune.models.distinct import DistinctMembers
from proxytune.models.ensemble import Ensemble
from proxytune.models.member import Member
from proxytune.record import ArmCost, Bandwidth, Drafts, TaskCosts

Answers = Mapping[str, Mapping[int, Sequence[int]]]
"""Arm -> request -> the tokens of its answer."""


def costs(
    members: DistinctMembers, arms: Sequence[Arm], answers: Answers, seconds: Mapping[Hashable, float]
) -> TaskCosts:
    """The costs of one call of the engine, from the `seconds` of its clock."""
    read = {role: _different(role, members, arms, answers) for role in members.roles}
    found = {}
    for arm in arms:
        tokens = sum(map(len, answers[arm.name].values()))
        spent = seconds.get(("rule", arm.name), 0.0)
        for role in members.needed(arm.roles):
            part = tokens / read[role] if read[role] else 0.0
            spent += seconds.get(("prompts", role), 0.0) + part * seconds.get(("answers", role), 0.0)
        found[arm.name] = ArmCost(seconds=spent, tokens=tokens, weights=weight_bytes(members.ensemble, arm.roles))
    by_member = {role: sum(seconds.get((what, role), 0.0) for what in ("prompts", "answers")) for role in members.roles}
    return TaskCosts(arms=found, members=by_member)


def added(one: TaskCosts, other: TaskCosts) -> TaskCosts:
    """The sum of both costs."""
    arms = dict(one.arms)
    for name, cost in other.arms.items():
        before = arms.get(name, ArmCost(seconds=0.0, tokens=0, weights=0))
        arms[name] = ArmCost(
            seconds=before.seconds + cost.seconds, tokens=before.tokens + cost.tokens, weights=cost.weights
        )
    roles = {**one.members, **other.members}
    members = {role: one.members.get(role, 0.0) + other.members.get(role, 0.0) for role in roles}
    counts = {name: getattr(one.drafts, name) + getattr(other.drafts, name) for name in Drafts.model_fields}
    bandwidth = Bandwidth(
        read=one.bandwidth.read + other.bandwidth.read,
        seconds=one.bandwidth.seconds + other.bandwidth.seconds,
        copied=other.bandwidth.copied or one.bandwidth.copied,
    )
    return TaskCosts(arms=arms, members=members, drafts=Drafts(**counts), bandwidth=bandwidth)


def bandwidth(members: DistinctMembers, steps: Mapping[Hashable, int], seconds: Mapping[Hashable, float]) -> Bandwidth:
    """The bandwidth of the steps over answers; `steps` counts them by the keys of the clock's `seconds`."""
    local = [role for role in members.roles if steps.get(("answers", role)) and not members.ensemble[role].remote]
    if not local:
        return Bandwidth()
    return Bandwidth(
        read=sum(steps["answers", role] * _read_bytes(members.ensemble[role]) for role in local),
        seconds=sum(seconds["answers", role] for role in local),
        copied=copy_speed(members.ensemble.device),
    )


def _read_bytes(member: Member) -> int:
    """Bytes of the weights that a step reads: all except an embedding that is not also the head."""
    embedding, head = cast(Any, member.model.get_input_embeddings()), member.model.get_output_embeddings()
    unread = 0 if head is None or embedding.weight is head.weight else embedding.weight.nbytes
    return weight_bytes({member.role: member}, [member.role]) - unread


def weight_bytes(ensemble: Mapping[str, Member] | Ensemble, roles: Sequence[str]) -> int:
    """Bytes of the weights that are loaded for `roles`; a model that several roles share counts once."""
    models = {id(ensemble[role].model): ensemble[role].model for role in roles}
    return sum(weight.nbytes for model in models.values() for weight in model.parameters())


def _different(role: str, members: DistinctMembers, arms: Sequence[Arm], answers: Answers) -> int:
    """The number of answer tokens that `role` reads if common prefixes of the answers to a request are read once."""
    sharing = [answers[arm.name] for arm in arms if role in members.needed(arm.roles)]
    requests = dict.fromkeys(index for of_arm in sharing for index in of_arm)
    return sum(_nodes(of_arm[index] for of_arm in sharing if index in of_arm) for index in requests)


def _nodes(sequences: Iterable[Sequence[int]]) -> int:
    """The number of distinct non-empty prefixes."""
    children: dict[tuple[int, int], int] = {}
    for sequence in sequences:
        node = 0
        for token in sequence:
            node = children.setdefault((node, token), len(children) + 1)
    return len(children)
