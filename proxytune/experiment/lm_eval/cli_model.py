"""The fused model under lm-evaluation-harness's own command line: `--model proxytune --model_args base=...`, or
`pretrained=FOLDER` for one that was saved."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, cast

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model

from proxytune.console import loading_bars
from proxytune.engines.hf import HFEngine
from proxytune.errors import UserError, unknown_name
from proxytune.experiment.answers.shared import ArmFailed, Engine, Failed, SharedAnswers
from proxytune.experiment.answers.store import AnswerStore
from proxytune.experiment.lm_eval.arm_model import ArmLM, ItemAnswer
from proxytune.fusion import RULES, Rule, Static
from proxytune.fusion.arm import Arm
from proxytune.fusion.rule import inputs_of
from proxytune.models import Ensemble, FamilySpec, FusedCausalLM, Source, load
from proxytune.models.vocabulary import MissingTokens

EXPERT = "expert:expert"
NO_CACHE = (
    "--use_cache: lm-eval's cache does not tell models, rules and weights apart and would give one's answers for "
    "another's: leave it out; proxytune run keeps answers by all that decides them (store=FILE)"
)


@register_model("proxytune")
class FusedLM(ArmLM):
    """base + alpha (expert - antiexpert), or another rule, as an lm-eval model; without an expert, the base alone.

    The same path as `proxytune run`: a chat expert gets its own prompt, and answers at alpha = 0 are the base's.
    """

    def __init__(
        self,
        base: str | Mapping[str, Any] | None = None,
        expert: str | Mapping[str, Any] | None = None,
        antiexpert: str | Mapping[str, Any] | None = None,
        pretrained: str | None = None,
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
            pretrained: in their place, what `FusedCausalLM.save_pretrained` wrote: a folder or a hub id.
            rule: id of a rule in `proxytune.fusion`; its own `parameters` stand beside it. None: static, or the saved
                one.
            alpha: the weight of the rule "static"; None: 1, or the saved one.
            batch_size: requests worked on together; None and "auto": the engine's choice.
            dtype, device: of every member that does not say its own. A GPU that is not there is left out, as lm-eval
                names one unless it is told otherwise.

        Raises:
            UserError: for anything in it that a user can fix.
        """
        if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
            device = None
        members = {"base": base, "expert": expert, "antiexpert": antiexpert}
        given = {role: source for role, source in members.items() if source is not None}
        asked = _rule(rule, alpha, parameters)
        if pretrained is None:
            ensemble, arm = _composed(given, asked, missing_tokens, {"dtype": dtype, "device_map": device})
        elif given or missing_tokens != "refuse":
            raise UserError("model_args: pretrained brings its own base, expert, antiexpert and missing_tokens")
        else:
            saved = FusedCausalLM.from_pretrained(pretrained, rule=asked, dtype=dtype, device_map=device)
            ensemble, arm = saved.ensemble, saved.arm
        size = None if batch_size in (None, "auto") else int(cast(Any, batch_size))
        engine = cast(Engine, HFEngine(ensemble, size))
        super().__init__(SharedAnswers(engine, [arm], AnswerStore(None), "proxytune"), arm)

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Raises UserError: lm-eval's own cache only knows a request by its text."""
        raise UserError(NO_CACHE)

    def _note(self, request: Instance, *answers: ItemAnswer) -> None:
        """lm-eval's own command line would score what failed."""
        super()._note(request, *answers)
        for one in answers:
            if isinstance(one.answer, Failed):
                raise ArmFailed(one.answer.error)


@loading_bars()
def _composed(
    given: Mapping[str, str | Mapping[str, Any]],
    rule: Rule | None,
    missing_tokens: MissingTokens,
    defaults: Mapping[str, Any],
) -> tuple[Ensemble, Arm]:
    """The models of `given` by role, loaded, and the arm over them."""
    if rule is None and len(given) > 1:
        rule = Static(1.0)
    takes = ["base"] if rule is None else [name.removesuffix("s") for name in inputs_of(rule)]
    if given.keys() != set(takes):
        what = "the base alone" if rule is None else f"rule={rule.id}"
        raise UserError(
            f"model_args: {what} takes {', '.join(takes)}, given: {', '.join(given) or 'none of them'}; a saved "
            "FusedCausalLM is pretrained=FOLDER"
        )
    sources = {role: _source(source, role, defaults) for role, source in given.items()}
    experts = {"expert": sources["expert"]} if "expert" in sources else {}
    family = FamilySpec(sources["base"], sources.get("antiexpert"), experts, missing_tokens=missing_tokens)
    return load(family), Arm("proxytune", rule=rule, experts=(EXPERT,) if experts else ())


def _source(source: str | Mapping[str, Any], role: str, defaults: Mapping[str, Any]) -> Source:
    mapping = source if isinstance(source, Mapping) else {"path": source}
    return Source.of({**defaults, **mapping}, f"model_args.{role}")


def _rule(name: str | None, alpha: float | None, parameters: dict[str, Any]) -> Rule | None:
    """The requested rule; None if nothing says which."""
    if name is None and alpha is None and not parameters:
        return None
    name = "static" if name is None else name
    if name not in RULES:
        raise unknown_name("rule in model_args", name, RULES)
    if alpha is not None:
        if name != "static":
            raise UserError(f"model_args: alpha={alpha} has no effect with rule={name}; only with rule=static")
        parameters = {"weights": alpha} | parameters
    known = [f.name for f in fields(cast(Any, RULES[name]))]
    for key in parameters:
        if key not in known:
            raise unknown_name(f"model_args key (rule={name})", key, [*_KEYS, *known])
    try:
        return functools.partial(RULES[name], **parameters)()
    except (TypeError, ValueError) as error:
        raise UserError(f"model_args: {error}") from error


_KEYS = (
    *("base", "expert", "antiexpert", "pretrained", "missing_tokens"),
    *("rule", "alpha", "dtype", "batch_size", "device"),
)
