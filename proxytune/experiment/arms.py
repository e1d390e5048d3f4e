"""From the arms of a configuration to the arms of one task: which model is "tuned" or "own" depends on the task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from proxytune.errors import UserError, unknown_name
from proxytune.fusion.arm import Arm
from proxytune.fusion.rule import try_out
from proxytune.models.family import FamilySpec

ArmConfig = Mapping[str, Any]
"""{"model": ...} or {"rule": Rule, "experts": own | all | [names]}, maybe with {"except": [names]}."""

_MODELS = ("base", "antiexpert", "expert", "tuned", "each_expert")
_KEYS = ("model", "rule", "experts", "except")


@dataclass
class TaskArms:
    """The arms of one task."""

    arms: dict[str, Arm] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    """Arms that cannot be had for this task, and why."""
    references: dict[str, str] = field(default_factory=dict)
    """"base", "expert", "tuned": the arm that is this model alone, where there is one. See `_references`."""

    def drop(self, name: str, why: str) -> None:
        """The arm is missing, and no other is compared with it."""
        del self.arms[name]
        self.missing[name] = why
        self.references = {reference: arm for reference, arm in self.references.items() if arm != name}

    def add(self, arm: Arm) -> None:
        if arm.name in self.arms:
            raise UserError(f"two arms are called {arm.name!r}: give one of them another name")
        self.arms[arm.name] = arm


def resolve(configs: Mapping[str, ArmConfig], family: FamilySpec, task: str, named: str | None) -> TaskArms:
    """The arms of `task`, whose own expert and tuned model are `named` (None: the task names none).

    Raises UserError for unknown keys and names, and where an arm needs the task's own expert and there is none.
    """
    own = _Own(family, task, named)
    found = TaskArms()
    for name, config in configs.items():
        _check(name, config)
        if "rule" in config:
            found.add(_fused(name, config, own))
        elif config["model"] == "each_expert":
            for expert in _all_but(name, config, family):
                found.add(Arm(f"expert:{expert}", base=f"expert:{expert}"))
        elif config["model"] == "tuned" and own.tuned is None:
            found.missing[name] = f"the family has no tuned model for task {task!r}"
        else:
            found.add(Arm(name, base=_role(name, config["model"], own)))
    found.references = _references(found.arms.values(), own)
    return found


class _Own:
    """The expert and the tuned model that belong to a task: those it names, or the family's only ones."""

    def __init__(self, family: FamilySpec, task: str, named: str | None) -> None:
        self.family, self.task, self.named = family, task, named
        self.expert = self._of(family.experts)
        self.tuned = self._of(family.tuned)

    def _of(self, members: Mapping[str, Any]) -> str | None:
        if self.named in members:
            return self.named
        return next(iter(members)) if len(members) == 1 else None

    def needed_expert(self, arm: str) -> str:
        if self.expert is None:
            wants = "names no expert" if self.named is None else f"belongs to expert {self.named!r}"
            known = ", ".join(self.family.experts) or "none"
            raise UserError(
                f"arms.{arm} needs the expert of task {self.task!r}, which {wants}; the family's experts: {known}"
            )
        return self.expert


def _check(name: str, config: ArmConfig) -> None:
    for key in config:
        if key not in _KEYS:
            raise unknown_name(f"key in arms.{name}", key, _KEYS)
    if ("model" in config) == ("rule" in config):
        raise UserError(f"arms.{name} needs either a model (one model alone) or a rule (with experts), and not both")
    if "experts" in config and "rule" not in config:
        raise UserError(f"arms.{name}.experts has no effect on a model alone")
    if "except" in config and config.get("experts") != "all" and config.get("model") != "each_expert":
        raise UserError(f"arms.{name}.except has an effect with experts=all or model=each_expert only")


def _fused(name: str, config: ArmConfig, own: _Own) -> Arm:
    if not own.family.experts:
        raise UserError(f"arms.{name} fuses experts into the base, and the family has no experts")
    experts = _experts(name, config, own)
    if not experts:
        raise UserError(f"arms.{name}.experts is empty, but a rule needs at least one expert")
    try:
        try_out(config["rule"], len(experts))
    except ValueError as error:  # known before any model has loaded
        raise UserError(f"arms.{name}.rule: {error}") from error
    return Arm(name, rule=config["rule"], experts=tuple(f"expert:{expert}" for expert in experts))


def _experts(name: str, config: ArmConfig, own: _Own) -> Sequence[str]:
    experts = config.get("experts", "own")
    if experts == "own":
        return [own.needed_expert(name)]
    if experts == "all":
        return _all_but(name, config, own.family)
    if isinstance(experts, str):
        raise unknown_name(f"value of arms.{name}.experts", experts, ("own", "all", "a list of names"))
    for expert in experts:
        if expert not in own.family.experts:
            raise unknown_name(f"expert in arms.{name}.experts", expert, own.family.experts)
        if experts.count(expert) > 1:
            raise UserError(f"arms.{name}.experts names {expert!r} twice, which would count it twice: name it once")
    return experts


def _all_but(name: str, config: ArmConfig, family: FamilySpec) -> list[str]:
    left_out = config.get("except", ())
    for expert in left_out:
        if expert not in family.experts:
            raise unknown_name(f"expert in arms.{name}.except", expert, family.experts)
    return [expert for expert in family.experts if expert not in left_out]


def _role(name: str, model: str, own: _Own) -> str:
    if model == "expert":
        return f"expert:{own.needed_expert(name)}"
    if model == "tuned":
        return f"tuned:{own.tuned}"
    if model not in own.family.sources:
        raise unknown_name(f"model in arms.{name}.model", model, {*own.family.sources, *_MODELS})
    return model


def _references(arms: Iterable[Arm], own: _Own) -> dict[str, str]:
    """The arms to compare with: the base, the task's own expert, and its tuned model or else the only one there is."""
    alone: dict[str, str] = {}
    for arm in arms:
        if arm.rule is None:
            alone.setdefault(arm.base, arm.name)
    upper_bounds = [role for role in alone if role.startswith("tuned:")]
    tuned = upper_bounds[0] if len(upper_bounds) == 1 else f"tuned:{own.tuned}"
    roles = {"base": "base", "expert": f"expert:{own.expert}", "tuned": tuned}
    return {reference: alone[role] for reference, role in roles.items() if role in alone}
