"""The key of an answer: a hash of everything that determines it, so no answer is ever mistaken for another's."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from proxytune.engines.requests import GenerateRequest, Request
from proxytune.errors import UserError
from proxytune.fusion.arm import Arm
from proxytune.fusion.rule import Rule
from proxytune.models.facts import Members
from proxytune.models.vocabulary import tokenizer_state
from proxytune.provenance import code_version, digest


class Keys:
    """Keys of the answers of some arms over one ensemble. What arms, roles and tasks are called is not part of them."""

    def __init__(self, ensemble: Members[Any], arms: Iterable[Arm], engine: Mapping[str, Any] | None = None) -> None:
        """`engine` is what else decides answers; None for the default engine.

        Raises UserError for a member without an identity and for a rule that cannot be described.
        """
        self._tokenizer = _hash(tokenizer_state(ensemble.tokenizer))
        common: dict[str, Any] = {"tokenizer": self._tokenizer, "version": code_version()}
        common |= {} if engine is None else {"engine": engine}
        self.of_arm = {
            arm.name: _hash(
                common
                | {"members": [_member(ensemble, role) for role in arm.roles], "rule": _rule(arm.rule)}
                | {"ends": ensemble.ends(arm.roles)}
            )
            for arm in arms
        }
        """Hash of how each arm answers: its members, its rule with parameters and source, the code that runs them."""

    def of(self, arm: Arm, request: Request) -> str:
        """Hash of the arm and of what `request` asks of its roles."""
        # Traces and drafts do not change the answer.
        asked = {name: value for name, value in vars(request).items() if name not in ("prompt", "trace", "drafts")}
        prompts = [request.prompt.of(role) for role in arm.roles]
        alike = all(prompt == prompts[0] for prompt in prompts)
        return _hash({"arm": self.of_arm[arm.name], "prompts": prompts[:1] if alike else prompts, **asked})

    def asked(self, request: GenerateRequest) -> str:
        """Hash of what `request` asks, whichever arm and version answers it: such answers may resemble one another."""
        facts = [request.prompt.tokens, request.temperature, request.top_p, request.seed]
        return _hash({"tokenizer": self._tokenizer, "asked": facts})


def rule_facts(rule: Rule) -> dict[str, Any]:
    """Class and parameters of a rule. Raises UserError unless it is a dataclass."""
    kind = type(rule)
    if not is_dataclass(rule):
        raise UserError(f"rule {kind.__name__} must be a frozen dataclass, so that its parameters can be recorded")
    return {"class": f"{kind.__module__}.{kind.__qualname__}", "parameters": asdict(rule)}


def _rule(rule: Rule | None) -> dict[str, Any] | None:
    return None if rule is None else rule_facts(rule) | {"source": _rule_source(type(rule))}


@lru_cache
def _rule_source(kind: type[Rule]) -> str:
    """Hash of the file (or notebook cell) that defines the rule: an edited rule answers anew."""
    try:
        file = _file(kind)
        text = "".join(inspect.findsource(kind.fuse)[0]) if file is None else file.read_text()
    except (OSError, TypeError) as error:
        raise UserError(
            f"rule {kind.__name__}: its source cannot be read, so its answers could be taken for an older version's; "
            "define it in a file or a notebook cell"
        ) from error
    return digest([text.encode()])


def _file(kind: type) -> Path | None:
    """The file that defines the class; None in a notebook, whose cells Python only knows by their functions."""
    try:
        file = inspect.getsourcefile(kind)
    except (OSError, TypeError):
        return None
    return Path(file) if file is not None and Path(file).is_file() else None


def _member(ensemble: Members[Any], role: str) -> list[Any]:
    member = ensemble[role]
    if not member.identity:
        raise UserError(f"{role} has no identity (revision or file hash), so its answers cannot be told from others'")
    return [member.identity, str(member.dtype), member.missing, member.unknown if member.missing else None]


def _hash(facts: Any) -> str:
    try:
        text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    except TypeError as error:
        raise UserError(f"a rule's parameters must be plain numbers, strings or sequences of them: {error}") from error
    return digest([text.encode()])
