"""The fused model under lm-evaluation-harness's own command line: `--model proxytune --model_args base=...`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, cast

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model

from proxytune.engines.arms import Arm
from proxytune.engines.hf import HFEngine
from proxytune.errors import UserError, unknown_name
from proxytune.experiment.board import ArmFailed, Board, Engine, Failed
from proxytune.experiment.lm import ArmLM, Asked
from proxytune.experiment.store import AnswerStore
from proxytune.fusion import RULES, Rule
from proxytune.models import FamilySpec, Source, load
from proxytune.models.vocabulary import MissingTokens

EXPERT = "expert:expert"


@register_model("proxytune")
class FusedLM(ArmLM):
    """base + alpha (expert - antiexpert), or another rule, as an lm-eval model; without an expert, the base alone.

    The same path as `proxytune run`: a chat expert gets its own prompt, and answers at alpha = 0 are the base's.
    """

    def __init__(
        self,
        base: str | Mapping[str, Any],
        expert: str | Mapping[str, Any] | None = None,
        antiexpert: str | Mapping[str, Any] | None = None,
        rule: str | None = None,
        alpha: float | None = None,
        missing_tokens: MissingTokens = "refuse",
        dtype: str = "auto",
        batch_size: int | str | None = None,
        device: str | None = None,
        **parameters: Any,
    ) -> None:
        """From lm-eval's `--model_args`, as key=value pairs or as JSON.

        Args:
            base, expert, antiexpert: hub ids or folders; in JSON also mappings of the fields of a `Source`.
            rule: id of a rule in `proxytune.fusion`; its own `parameters` stand beside it. None: static.
            alpha: the weight of the rule "static"; None: 1.
            batch_size: requests worked on together; None and "auto": the engine's choice.
            dtype, device: of every member that does not say its own. A GPU that is not there is left out, as lm-eval
                asks for one if it is not told otherwise.

        Raises:
            UserError: for anything in it that a user can mend.
        """
        sources = {"base": base, "expert": expert, "antiexpert": antiexpert}
        if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
            device = None
        defaults = {"dtype": dtype, "device_map": device}
        given = {role: _source(source, role, defaults) for role, source in sources.items() if source is not None}
        if "base" not in given or ("expert" in given) != ("antiexpert" in given):
            raise UserError("model_args: give base, expert and antiexpert, or base alone.")
        experts = {"expert": given["expert"]} if "expert" in given else {}
        family = FamilySpec(given["base"], given.get("antiexpert"), experts, missing_tokens=missing_tokens)
        if experts:
            arm = Arm("proxytune", rule=_rule(rule, alpha, parameters), experts=(EXPERT,))
        elif rule is not None or alpha is not None or parameters:
            raise UserError("model_args: a rule and its parameters have no effect on the base alone.")
        else:
            arm = Arm("proxytune")
        size = None if batch_size in (None, "auto") else int(cast(Any, batch_size))
        engine = cast(Engine, HFEngine(load(family), size))
        super().__init__(Board(engine, [arm], AnswerStore(None), "proxytune"), arm)

    def _note(self, request: Instance, *asked: Asked) -> None:
        """lm-eval's own command line would score what failed."""
        super()._note(request, *asked)
        for one in asked:
            if isinstance(one.answer, Failed):
                raise ArmFailed(one.answer.error)


def _source(source: str | Mapping[str, Any], role: str, defaults: Mapping[str, Any]) -> Source:
    mapping = source if isinstance(source, Mapping) else {"path": source}
    return Source.of({**defaults, **mapping}, f"model_args.{role}")


def _rule(name: str | None, alpha: float | None, parameters: dict[str, Any]) -> Rule:
    name = "static" if name is None else name
    if name not in RULES:
        raise unknown_name("rule in model_args", name, RULES)
    if alpha is not None:
        if name != "static":
            raise UserError(f"model_args: alpha={alpha} has no effect with rule={name}; only with rule=static.")
        parameters = {"weights": alpha} | parameters
    known = [f.name for f in fields(cast(Any, RULES[name]))]
    for key in parameters:
        if key not in known:
            raise unknown_name(f"model_args key (rule={name})", key, [*_KEYS, *known])
    try:
        return functools.partial(RULES[name], **parameters)()
    except (TypeError, ValueError) as error:
        raise UserError(f"model_args: {error}") from error


_KEYS = ("base", "expert", "antiexpert", "rule", "alpha", "missing_tokens", "dtype", "batch_size", "device")
