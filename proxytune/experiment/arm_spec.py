"""An arm as the user describes it, checked once: configurations and the Python API give the same messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from proxytune.validation import Strict, check

Names = Annotated[Sequence[str], Field(min_length=1)]


class ArmSpec(Strict):
    """An arm: a mapping with a model, or with a rule and experts. One entry of `conf/arms`.

    Which model is "expert", "tuned" or "own" depends on the task: see `arms.resolve`.
    """

    model: str | None = None
    """base, antiexpert, expert, tuned, each_expert or a role such as expert:gsm8k"""
    rule: Any = None
    """a fusion rule: a mapping with _target_, or a file of conf/fusion by +fusion@arms.<arm>.rule=<file>"""
    experts: Literal["own", "all"] | Names | None = None
    """own (the expert that belongs to the task), all, or a list of at least one expert name, role or tuned"""
    without: Names | None = Field(None, alias="except")
    """a list of expert names left out of `all` and `each_expert`"""
    base: str | None = None
    """the model whose logits the rule shifts: base, antiexpert, expert, tuned or a role; null: base"""
    antiexpert: str | None = None
    """the model that experts are compared with: a role, expert, tuned or the name of an expert; null: antiexpert"""

    @field_validator("rule")
    @classmethod
    def _is_a_rule(cls, rule: Any) -> Any:
        described = isinstance(rule, Mapping) and "_target_" in rule
        if rule is None or described or (hasattr(rule, "fuse") and not isinstance(rule, type)):
            return rule
        raise PydanticCustomError("not_a_rule", "")

    @field_validator("experts", "base", "antiexpert")
    @classmethod
    def _belongs_to_a_rule(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and info.data.get("model") is not None and info.data.get("rule") is None:
            raise ValueError("has no effect on a model alone: remove it, or give a rule, not a model")
        return value

    @field_validator("without")
    @classmethod
    def _leaves_something_out(cls, names: Any, info: ValidationInfo) -> Any:
        if names is not None and info.data.get("experts") != "all" and info.data.get("model") != "each_expert":
            raise ValueError("has an effect with experts=all or model=each_expert only")
        return names

    @model_validator(mode="after")
    def _is_one_of_two(self) -> ArmSpec:
        if (self.model is None) == (self.rule is None):
            raise ValueError("needs either a model (one model alone) or a rule (with experts), and not both")
        return self


def arm_specs(arms: Mapping[str, ArmSpec | Mapping[str, Any]]) -> dict[str, ArmSpec]:
    """`arms` checked; raises UserError with the key (`arms.<name>.<field>`) of the first fault."""
    values = {name: dict(arm) if isinstance(arm, Mapping) else arm for name, arm in arms.items()}
    return check(dict[str, ArmSpec], values, "arms")
