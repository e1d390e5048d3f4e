"""The settings of the fused model inside vLLM, and of a single request. Plain data, without vLLM.

The settings travel as `hf_overrides={"proxytune": {...}}`, a request's part in vLLM's `extra_args` (over HTTP
`vllm_xargs`): the arm that answers, and parameters of its rule, `{"arm": "proxy", "weights": 0.5}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pkgutil import resolve_name
from typing import Any

from proxytune.engines.requests import GenerateRequest, Prompt
from proxytune.errors import UserError, unknown_name
from proxytune.fusion.arm import Arm
from proxytune.fusion.rule import Rule, try_out
from proxytune.fusion.static import Static

KEY = "proxytune"
"""The settings' place in vLLM's `hf_overrides`, and then in the model's configuration."""
ARCHITECTURE = "FusedForCausalLM"
VLLM_KEYS = {"session_id", "kv_transfer_params", "ec_transfer_params", "kv_cache_report_mode"}
"""Keys of `extra_args` that belong to vLLM itself."""


@dataclass(frozen=True)
class Place:
    """Where a member's weights and configuration are."""

    path: str
    revision: str | None = None
    adapter: str | None = None
    """A LoRA adapter over them, which other members at the same place do not have."""
    adapter_revision: str | None = None


@dataclass(frozen=True)
class FusedSettings:
    """The members by role, the vocabulary that they share, and the arms that requests may name."""

    members: Mapping[str, Place]
    """The first is what vLLM takes for its model."""
    vocab_size: int
    """V: logits beyond are padding rows of the heads."""
    arms: Mapping[str, Arm] | None = None
    """By name; the first answers requests that name none. None: requests bring their arms, which may build any rule, so
    that only for requests of one's own process."""

    def to_dict(self) -> dict[str, Any]:
        arms = None if self.arms is None else [arm_to_dict(arm) for arm in self.arms.values()]
        members = {role: asdict(place) for role, place in self.members.items()}
        return {"members": members, "vocab_size": self.vocab_size, "arms": arms}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FusedSettings:
        arms = None if values["arms"] is None else [arm_from_dict(arm) for arm in values["arms"]]
        members = {role: Place(**place) for role, place in values["members"].items()}
        return cls(members, values["vocab_size"], None if arms is None else {arm.name: arm for arm in arms})

    @classmethod
    def of(cls, config: Any) -> FusedSettings:
        """Those in vLLM's configuration of the engine."""
        return cls.from_dict(getattr(config.model_config.hf_config, KEY))

    @property
    def modules(self) -> list[tuple[str, ...]]:
        """The roles that go through the same weights together: those that only differ in their adapters."""
        groups: dict[object, list[str]] = {}
        adapted = {(place.path, place.revision) for place in self.members.values() if place.adapter is not None}
        for role, place in self.members.items():
            where = place.path, place.revision
            groups.setdefault(where if where in adapted else role, []).append(role)
        return [tuple(roles) for roles in groups.values()]

    @property
    def widest(self) -> Arm:
        """An arm over all members, for vLLM's dry runs, which measure the memory that is left for KV caches."""
        first, *others = self.members
        if len(others) < 2:
            return Arm("dry run", first)
        return Arm("dry run", first, Static(0.0), experts=tuple(others[1:]), antiexpert=others[0])


@dataclass(frozen=True)
class Asked:
    """What a request asks for: its arm, and the name under which the weights at each token are kept (None: not)."""

    arm: Arm
    keep: str | None = None
    sampling: GenerateRequest | None = None
    """How tokens are drawn, by the noise of `engine=hf`; None: vLLM draws them."""
    start: int = 0
    """Tokens before the answer."""


def asked(settings: FusedSettings, extra_args: Mapping[str, Any] | None) -> Asked:
    """What `extra_args` asks for. Raises UserError for an arm or a parameter that is not known, or a wrong value."""
    given = {key: value for key, value in (extra_args or {}).items() if key not in VLLM_KEYS}
    if settings.arms is None:
        if not isinstance(given.get("arm"), Mapping):
            raise UserError("extra_args.arm is missing: this engine was started without arms, so each request has one")
        drawn = given.get("sampling")
        sampling = None if drawn is None else GenerateRequest(Prompt(()), 0, **_frozen(drawn))
        return Asked(arm_from_dict(given["arm"]), given.get("keep"), sampling, given.get("start", 0))
    name = given.pop("arm", next(iter(settings.arms)))
    if not isinstance(name, str) or name not in settings.arms:
        raise unknown_name("arm", name, settings.arms)
    arm = settings.arms[name]
    return Asked(_with_parameters(arm, given) if given else arm)


def check_asked(settings: FusedSettings, extra_args: Mapping[str, Any] | None) -> None:
    """`asked`, and a trial of the rule, which finds a wrong number of weights, for example. Raises UserError."""
    arm = asked(settings, extra_args).arm
    try:
        if arm.rule is not None:
            try_out(arm.rule, len(arm.experts))
    except ValueError as error:
        raise UserError(str(error)) from error


def _with_parameters(arm: Arm, parameters: Mapping[str, Any]) -> Arm:
    """`arm` with other parameters of its rule."""
    if arm.rule is None:
        raise UserError(f"{', '.join(parameters)} has no effect: arm {arm.name!r} is a single model")
    rule: Any = arm.rule
    known = [field.name for field in fields(rule)]
    for key in parameters:
        if key not in known:
            raise unknown_name(f"parameter of arm {arm.name!r}", key, ["arm", *known])
    try:
        return replace(arm, rule=replace(rule, **_frozen(parameters)))
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error


def arm_to_dict(arm: Arm) -> dict[str, Any]:
    """An arm as plain data. Raises UserError for a rule that another process cannot build."""
    rule = None if arm.rule is None else _rule_to_dict(arm.rule)
    return {
        "name": arm.name,
        "base": arm.base,
        "rule": rule,
        "experts": list(arm.experts),
        "antiexpert": arm.antiexpert,
    }


def arm_from_dict(values: Mapping[str, Any]) -> Arm:
    rule = values["rule"]
    built = None if rule is None else resolve_name(rule["class"])(**_frozen(rule["parameters"]))
    return Arm(values["name"], values["base"], built, tuple(values["experts"]), values["antiexpert"])


def _frozen(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows lists only; a rule is hashed, so that it has tuples."""
    return {name: _tuple(value) for name, value in parameters.items()}


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list) else value


def _rule_to_dict(rule: Rule) -> dict[str, Any]:
    kind = type(rule)
    name = f"{kind.__module__}:{kind.__qualname__}"
    if kind.__module__ == "__main__" or "<locals>" in name or not is_dataclass(rule):
        raise UserError(f"rule {name}: vLLM builds it anew, so it must be a dataclass in a module that can be imported")
    return {"class": name, "parameters": asdict(rule)}
