"""Ranges in parameters: `arms.proxy.rule.weights=0.2:2.0:0.2` is ten arms, which share every forward pass."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from decimal import Decimal

from proxytune.errors import UserError
from proxytune.experiment.arm_spec import ArmSpec

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(f"({_NUMBER}):({_NUMBER}):({_NUMBER})")
MOST = 1000


def expanded(specs: Mapping[str, ArmSpec]) -> dict[str, dict[str, ArmSpec]]:
    """By the name in `specs`: the arm itself, or an arm for each value, called `proxy[weights=0.4]`.

    A range is first:last:step, the last value included. Several ranges in one arm give every combination.
    Raises UserError for a range without values.
    """
    return {name: _arms(name, spec) for name, spec in specs.items()}


def _arms(name: str, spec: ArmSpec) -> dict[str, ArmSpec]:
    rule = spec.rule if isinstance(spec.rule, Mapping) else {}
    texts = {key: value for key, value in rule.items() if isinstance(value, str)}
    ranges = {key: match for key, value in texts.items() if (match := _RANGE.fullmatch(value))}
    if not ranges:
        return {name: spec}
    values = [_values(f"arms.{name}.rule.{key}", match) for key, match in ranges.items()]
    arms = {}
    for chosen in itertools.product(*values):
        parameters = dict(zip(ranges, chosen, strict=True))
        label = ",".join(f"{key}={value}" for key, value in parameters.items())
        numbers = {key: float(value) for key, value in parameters.items()}
        arms[f"{name}[{label}]"] = spec.model_copy(update={"rule": {**rule, **numbers}})
    return arms


def _values(key: str, match: re.Match[str]) -> list[Decimal]:
    """Counted in decimals: 0.2 + 0.2 + 0.2 is 0.6."""
    first, last, step = map(Decimal, match.groups())
    if step == 0 or (last - first) / step < 0:
        raise UserError(f"{key}={match[0]} has no values: a range is first:last:step, as in 0.2:2.0:0.2")
    count = int((last - first) / step) + 1
    if count > MOST:
        raise UserError(f"{key}={match[0]} has {count} values; at most {MOST} are allowed")
    return [first + i * step for i in range(count)]
