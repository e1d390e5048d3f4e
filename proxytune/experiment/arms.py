"""From the user's arms to the arms of one task: which model is "tuned" or "own" depends on the task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from proxytune.errors import UserError, unknown_name
from proxytune.experiment.arm_spec import ArmSpec
from proxytune.fusion.arm import Arm
from proxytune.fusion.rule import RuleBug, inputs_of, try_out
from proxytune.models.family import FamilySpec


@dataclass(frozen=True)
class TaskArms:
    """The arms of one task."""

    present: dict[str, Arm]
    missing: dict[str, str]
    """Arms that this task does not have, and why."""
    references: dict[str, str]
    """"base", "expert", "tuned": the arm that is this model alone, where there is one. See `_references`."""
    no_tuned: str = "no arm is the tuned model alone"
    """Why there is no reference "tuned", where there is none."""

    def without(self, failed: Mapping[str, str]) -> TaskArms:
        """Without the arms that failed (name -> why): they are missing, and no other is compared with them."""
        tuned = self.references.get("tuned")
        return replace(
            self,
            present={name: arm for name, arm in self.present.items() if name not in failed},
            missing={**self.missing, **failed},
            references={reference: name for reference, name in self.references.items() if name not in failed},
            no_tuned=failed.get(tuned, self.no_tuned) if tuned else self.no_tuned,
        )


def own(members: Mapping[str, Any], named: str | None) -> str | None:
    """The member that belongs to a task: the one that the task names, or the only one; None if there is none."""
    if named in members:
        return named
    return next(iter(members)) if len(members) == 1 else None


def resolve(
    specs: Mapping[str, ArmSpec], family: FamilySpec, task: str, named: str | None, *, unseen: bool = False
) -> TaskArms:
    """The arms of `task`, whose own expert and tuned model are `named` (None: the task names none).

    `unseen` says that the other tasks have experts: arms that need the task's own are then missing on this one.
    Raises UserError for unknown names, for what a rule does not take, and, unless `unseen`, where an arm needs the
    task's own expert and there is none.
    """
    members = _Members(family, task, named)
    missing = {
        name: f"the family has no tuned model for task {task!r}"
        for name, spec in specs.items()
        if "tuned" in _models(spec) and members.tuned is None
    }
    found: dict[str, Arm] = {}
    for name, spec in specs.items():
        if name not in missing:
            try:
                _add(found, _arms(name, spec, members))
            except _NoExpert:
                if not unseen:
                    raise
                missing[name] = f"the family has no expert for task {task!r}"
    arms = TaskArms(found, missing, _references(found.values(), members))
    of_tuned = [why for name, why in missing.items() if specs[name].model == "tuned"]
    return replace(arms, no_tuned=of_tuned[0]) if of_tuned else arms


def _add(found: dict[str, Arm], arms: Iterable[Arm]) -> None:
    for arm in arms:
        if arm.name in found:
            raise UserError(f"two arms are called {arm.name!r}: give one of them another name")
        found[arm.name] = arm


def try_rules(specs: Mapping[str, ArmSpec]) -> None:
    """Tries out every rule before there is a family, which may have to be trained first.

    Raises UserError for a bug, and for a number of experts that the rule refuses; how many `all` are is not known yet.
    """
    for name, spec in specs.items():
        if spec.rule is not None:
            _inputs(name, spec)
            try:
                _try_out(name, spec, 1 if spec.experts in (None, "own", "all") else len(spec.experts or ()))
            except UserError as error:
                if spec.experts != "all" or isinstance(error.__cause__, RuleBug):
                    raise


def _try_out(name: str, spec: ArmSpec, experts: int) -> None:
    try:
        try_out(spec.rule, experts)
    except ValueError as error:
        raise UserError(f"arms.{name}.rule: {error}") from error


class _NoExpert(UserError):
    """An arm needs the task's own expert, and there is none."""


def _models(spec: ArmSpec) -> list[str | None]:
    """What the arm names where a model may stand."""
    experts = [] if isinstance(spec.experts, str | None) else spec.experts
    return [spec.model, spec.base, spec.antiexpert, *experts]


class _Members:
    """A family as one task sees it: with the expert and the tuned model that the task names, or the only ones."""

    def __init__(self, family: FamilySpec, task: str, named: str | None) -> None:
        self.family, self.task, self.named = family, task, named
        self.expert = own(family.experts, named)
        self.tuned = own(family.tuned, named)

    def needed_expert(self, arm: str) -> str:
        if self.expert is None:
            wants = "names no expert" if self.named is None else f"belongs to expert {self.named!r}"
            known = ", ".join(self.family.experts) or "none"
            raise _NoExpert(
                f"arms.{arm} needs the expert of task {self.task!r}, which {wants}; the family's experts: {known}"
            )
        return self.expert

    def role(self, arm: str, key: str, model: str, more: Iterable[str] = ()) -> str:
        """The role of `model`, the value of the arm's `key`; `more` are other values that it may have."""
        if model == "expert":
            return f"expert:{self.needed_expert(arm)}"
        if model == "tuned":
            return f"tuned:{self.tuned}"
        if model not in self.family.sources:
            raise unknown_name(f"model in arms.{arm}.{key}", model, {*self.family.sources, "expert", "tuned", *more})
        return model

    def named_role(self, arm: str, key: str, model: str) -> str:
        """The role of `model`, where an expert may be named without its prefix."""
        is_name = model in self.family.experts and model not in ("expert", *self.family.sources)
        return self.role(arm, key, f"expert:{model}" if is_name else model, self.family.experts)

    def all_but(self, arm: str, without: Sequence[str]) -> list[str]:
        for expert in without:
            if expert not in self.family.experts:
                raise unknown_name(f"expert in arms.{arm}.except", expert, self.family.experts)
        return [expert for expert in self.family.experts if expert not in without]


def _arms(name: str, spec: ArmSpec, members: _Members) -> list[Arm]:
    """The arms that `spec` stands for: one, or one for each expert."""
    if spec.rule is not None:
        return [_fused(name, spec, members)]
    if spec.model == "each_expert":
        roles = [f"expert:{expert}" for expert in members.all_but(name, spec.without or ())]
        return [Arm(role, base=role) for role in roles]
    return [Arm(name, base=members.role(name, "model", str(spec.model), ["each_expert"]))]


def _fused(name: str, spec: ArmSpec, members: _Members) -> Arm:
    takes = _inputs(name, spec)
    experts = _experts(name, spec, members) if "experts" in takes else ()
    _try_out(name, spec, len(experts))
    base = members.role(name, "base", "base" if spec.base is None else spec.base)
    antiexpert = "antiexpert" if spec.antiexpert is None else spec.antiexpert
    if "antiexpert" in takes:
        antiexpert = members.named_role(name, "antiexpert", antiexpert)
    if antiexpert in experts:
        raise UserError(f"arms.{name}.antiexpert={antiexpert} is also one of its experts, whose shift would be 0")
    return Arm(name, base, spec.rule, experts, antiexpert)


def _inputs(name: str, spec: ArmSpec) -> tuple[str, ...]:
    """What the arm's rule takes. Raises UserError for anything else that the arm gives it."""
    try:
        takes = inputs_of(spec.rule)
    except ValueError as error:
        raise UserError(f"arms.{name}.rule: {error}") from error
    for key in ("experts", "antiexpert"):
        if key not in takes and getattr(spec, key) is not None:
            raise UserError(f"arms.{name}.{key} has no effect: the rule takes {' and '.join(takes)}")
    return takes


def _experts(name: str, spec: ArmSpec, members: _Members) -> tuple[str, ...]:
    """The roles of the experts that the arm fuses."""
    known = members.family.experts
    if isinstance(spec.experts, str | None):
        if not known:
            raise UserError(f"arms.{name} fuses experts into the base, and the family has no experts")
        every = spec.experts == "all"
        experts: Sequence[str] = members.all_but(name, spec.without or ()) if every else [members.needed_expert(name)]
    else:
        experts = spec.experts
    if not experts:
        raise UserError(f"arms.{name}.except leaves no expert, but a rule needs at least one")
    roles = [f"expert:{e}" if e in known else members.role(name, "experts", e, known) for e in experts]
    for expert, role in zip(experts, roles, strict=True):
        if roles.count(role) > 1:
            raise UserError(f"arms.{name}.experts names {expert!r} twice, which would count it twice: name it once")
    return tuple(roles)


def _references(arms: Iterable[Arm], members: _Members) -> dict[str, str]:
    """The arms to compare with: the base, the task's own expert, and its tuned model or else the only one there is."""
    alone: dict[str, str] = {}
    for arm in arms:
        if arm.rule is None:
            alone.setdefault(arm.base, arm.name)
    upper_bounds = [role for role in alone if role.startswith("tuned:")]
    tuned = upper_bounds[0] if len(upper_bounds) == 1 else f"tuned:{members.tuned}"
    roles = {"base": "base", "expert": f"expert:{members.expert}", "tuned": tuned}
    return {reference: alone[role] for reference, role in roles.items() if role in alone}
