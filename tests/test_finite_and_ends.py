"""NaN and infinite logits never become a score, and a fused answer ends where it ends for any member."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from transformers import GenerationConfig

from proxytune import FusedCausalLM
from proxytune.engines.hf import HFEngine
from proxytune.engines.requests import GenerateRequest, Prompt, ScoreRequest
from proxytune.errors import UserError
from proxytune.experiment.answers.keys import Keys
from proxytune.experiment.answers.shared import ArmFailed, Failed, SharedAnswers
from proxytune.experiment.answers.store import AnswerStore
from proxytune.fusion import Fused, MatchKL, Static
from proxytune.fusion.arm import Arm
from proxytune.models.ensemble import Ensemble
from proxytune.models.generation import ignored_settings

PROMPTS = [Prompt((1, 5 + i, 9, 7)) for i in range(4)]
SCORES = [ScoreRequest(prompt, (11, 12)) for prompt in PROMPTS]
GENERATE = [GenerateRequest(prompt, 4) for prompt in PROMPTS]
EXPERT = "expert:math"


@dataclass(frozen=True)
class Broken:
    """A rule that returns NaN or infinity at some positions."""

    value: float = float("nan")

    id: ClassVar[str] = "broken"
    formula: ClassVar[str] = "not a number"
    paper: ClassVar[str] = "ours"

    def fuse(self, base, experts, antiexpert):
        fused = base.float().clone()
        fused[..., 3] = self.value
        return Fused(fused, experts.new_zeros(experts.shape[:-1]).float())


def damaged(family: Ensemble, role: str, value: float, everywhere: bool = True) -> Ensemble:
    """The family with `value` in the head of `role`: in one weight, or in the embedding of one token alone."""
    model = deepcopy(family[role].model)
    with torch.no_grad():
        weight = model.get_output_embeddings().weight if everywhere else model.get_input_embeddings().weight
        weight[6] = value
    return Ensemble({**family.members, role: replace(family[role], model=model)}, family.tokenizer)


def shared(ensemble: Ensemble, *arms: Arm, store: AnswerStore | None = None) -> SharedAnswers:
    return SharedAnswers(
        HFEngine(ensemble), arms, AnswerStore(None) if store is None else store, "task", progress=False
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("requests", [SCORES, GENERATE], ids=["score", "generate"])
@pytest.mark.parametrize("rule", [None, Static(1.0), MatchKL(), Broken()], ids=str)
def test_an_arm_that_is_never_finite_has_failed_and_the_others_answer(family, value, requests, rule):
    arm = Arm("arm", base=EXPERT) if rule is None else Arm("arm", rule=rule, experts=(EXPERT,))
    ensemble = family if isinstance(rule, Broken) else damaged(family, EXPERT, value)
    arm = replace(arm, rule=Broken(value)) if isinstance(rule, Broken) else arm
    answers = shared(ensemble, Arm("base"), arm)
    with pytest.raises(ArmFailed, match="no finite answer"):
        answers.answer(arm, requests)
    alone = shared(family, Arm("base")).answer(Arm("base"), requests)
    assert answers.answer(Arm("base"), requests) == alone


@pytest.mark.parametrize("requests", [SCORES, GENERATE], ids=["score", "generate"])
def test_items_at_which_an_arm_is_not_finite_are_invalid_and_are_not_stored(family, requests, tmp_path):
    # Token 6 is in the second prompt alone; greedy answers of the others must not contain it.
    ensemble, arm = damaged(family, EXPERT, float("nan"), everywhere=False), Arm("expert", base=EXPERT)
    with AnswerStore(tmp_path / "answers.sqlite") as store:
        answers = shared(ensemble, arm, store=store).answer(arm, requests)
        broken = [i for i, answer in enumerate(answers) if isinstance(answer, Failed)]
        assert 1 in broken and len(broken) < len(answers)
        assert len(store) == len(answers) - len(broken)
        again = shared(ensemble, arm, store=store).answer(arm, requests)
    assert again == answers
    reason = answers[1].error
    assert "log-probability of token 0 is nan" in reason or "logits of token 0 of the answer" in reason


def test_a_rule_may_rule_tokens_out_but_not_all_of_them(family):
    some, all_ = Arm("some", rule=Broken(-torch.inf), experts=(EXPERT,)), Arm("all", rule=Nothing(), experts=(EXPERT,))
    answers = shared(family, some, all_)
    [ruled_out] = answers.answer(some, [ScoreRequest(PROMPTS[0], (3,))])
    assert ruled_out.logprobs == (-torch.inf,)
    assert all(not isinstance(answer, Failed) for answer in answers.answer(some, GENERATE))
    with pytest.raises(ArmFailed, match="no finite answer"):
        answers.answer(all_, GENERATE)


@dataclass(frozen=True)
class Nothing(Broken):
    """A rule that rules every token out."""

    def fuse(self, base, experts, antiexpert):
        return Fused(torch.full_like(base.float(), -torch.inf), experts.new_zeros(experts.shape[:-1]).float())


def ending_at(family: Ensemble, role: str, token: int | list[int]) -> Ensemble:
    """The family in which the generation config of `role` alone lists `token` as an end of sequence."""
    model = deepcopy(family[role].model)
    model.generation_config.eos_token_id = token
    return Ensemble({**family.members, role: replace(family[role], model=model)}, family.tokenizer)


def greedy(ensemble: Ensemble, arm: Arm, length: int = 8) -> list[int]:
    [(_, _, answer)] = HFEngine(ensemble).generate([GenerateRequest(PROMPTS[0], length)], [arm])
    return list(answer.tokens)


@pytest.mark.parametrize("role", ["base", EXPERT, "antiexpert"])
def test_an_arm_ends_where_any_of_its_members_ends(family, role):
    proxy = Arm("proxy", rule=Static(1.0), experts=(EXPERT,))
    free = greedy(family, proxy)
    ensemble = ending_at(family, role, [2, free[3]])
    assert greedy(ensemble, proxy) == free[: free.index(free[3]) + 1]
    other = Arm("tuned", base="tuned:math")
    assert greedy(ensemble, other) == greedy(family, other)
    assert Keys(ensemble, [proxy]).of_arm != Keys(family, [proxy]).of_arm


def test_the_hugging_face_face_ends_at_the_same_tokens(family):
    token = greedy(family, Arm("proxy", rule=Static(1.0), experts=(EXPERT,)))[3]
    ensemble = ending_at(family, EXPERT, [2, token])
    fused = FusedCausalLM.from_ensemble(ensemble, Static(1.0), [EXPERT])
    answer = fused.generate(torch.tensor([PROMPTS[0].tokens]), max_new_tokens=8, do_sample=False)
    assert answer[0, 4:].tolist() == greedy(ensemble, Arm("proxy", rule=Static(1.0), experts=(EXPERT,)))
    assert token in fused.generation_config.eos_token_id


def test_given_end_tokens_replace_those_of_the_members(family, tmp_path):
    proxy = Arm("proxy", rule=Static(1.0), experts=(EXPERT,))
    free = greedy(family, proxy)
    text = family.tokenizer.convert_ids_to_tokens(free[2])
    ensemble = Ensemble(ending_at(family, EXPERT, free[0]).members, family.tokenizer, end_tokens=[text])
    assert greedy(ensemble, proxy) == free[: free.index(free[2]) + 1]
    fused = FusedCausalLM.from_ensemble(ensemble, Static(1.0), [EXPERT])
    fused.save_pretrained(tmp_path)
    assert FusedCausalLM.from_pretrained(tmp_path).ensemble.ends(["base"]) == (free[2],)


def test_an_end_token_that_the_tokenizer_lacks_is_refused(family):
    with pytest.raises(UserError, match=r"models\.end_tokens: '<nowhere>' is not a token"):
        Ensemble(family.members, family.tokenizer, end_tokens=["<nowhere>"]).ends(["base"])


# --- what generation configs say beside the ends ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "ignored"),
    [
        ({}, {}),
        ({"repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
        ({"repetition_penalty": 1.0, "num_beams": 1, "top_k": 7, "temperature": 0.6}, {}),
        (
            {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8},
            {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8},
        ),
        ({"max_length": 4096, "max_new_tokens": 9, "eos_token_id": [1, 2], "use_cache": False}, {}),
        ({"suppress_tokens": [5], "min_new_tokens": 1}, {"min_new_tokens": 1, "suppress_tokens": [5]}),
        ({"renormalize_logits": True, "a_setting_to_come": 3}, {"renormalize_logits": True, "a_setting_to_come": 3}),
    ],
)
def test_settings_that_evaluation_does_not_apply_are_named(given, ignored):
    assert ignored_settings(GenerationConfig(**given)) == ignored
    assert ignored_settings(None) == {}


def test_evaluation_decodes_as_the_task_says_and_generate_as_the_model_says(family):
    """A repetition penalty changes what `generate` says, of both faces of transformers alike; never an evaluation."""
    model = deepcopy(family[EXPERT].model)  # its head has no padding rows, which stock transformers would count
    plainly = Ensemble({"base": replace(family[EXPERT], role="base")}, family.tokenizer)
    model.generation_config.repetition_penalty = 1.9
    alone = Ensemble({"base": replace(plainly["base"], model=model)}, family.tokenizer)
    fused, different = FusedCausalLM.from_ensemble(alone), 0
    assert alone["base"].ignored == {"repetition_penalty": 1.9}
    for prompt in [Prompt((5, 9, 200, 31, 77, 8, 3)), Prompt((250, 17, 17, 40)), *PROMPTS]:
        asked = [GenerateRequest(prompt, 24)], [Arm("base")]
        plain, other = (next(HFEngine(one).generate(*asked))[2].tokens for one in (plainly, alone))
        assert plain == other
        ids, options = torch.tensor([prompt.tokens]), {"max_new_tokens": 24, "do_sample": False}
        said, stock = (one.generate(ids, **options)[0, ids.shape[1] :].tolist() for one in (fused, model))
        assert said == stock
        neutral = fused.generate(ids, **options, repetition_penalty=1.0)[0, ids.shape[1] :].tolist()
        assert neutral == list(plain), "set to what does nothing, both are alike"
        different += said != neutral
    assert different > 0
