"""The fused model inside vLLM answers, token by token, as a slow loop over transformers modules does.

One engine for each family, because an engine takes half a minute to start. `VLLM_USE_V2_MODEL_RUNNER=1 pytest` runs
the same tests under vLLM's other model runner.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from engine_reference import fused_after, plain_logits
from families import FAMILIES, prompts, save, wrong
from tiny import WINDOW

from proxytune.engines.hf import HFEngine
from proxytune.engines.requests import Generated, GenerateRequest, Prompt, Scored, ScoreRequest
from proxytune.engines.vllm.engine import VLLMEngine
from proxytune.errors import UserError
from proxytune.fusion import MatchKL, Static
from proxytune.fusion.arm import Arm
from proxytune.fusion.contrastive import Contrastive
from proxytune.models import Ensemble, FamilySpec, describe, load

NEW = 24


@dataclass
class Both:
    """A family inside vLLM, and in transformers."""

    engine: VLLMEngine
    ensemble: Ensemble

    @property
    def experts(self) -> tuple[str, ...]:
        return tuple(role for role in self.ensemble.members if role.startswith("expert:"))

    @property
    def arms(self) -> list[Arm]:
        """Models alone, static weights and weights by token, with one expert and with all."""
        one, several = self.experts[:1], self.experts
        mixed = tuple(0.7 - 1.1 * i for i in range(len(several)))
        return [
            Arm("base"),
            Arm("expert", base=one[0]),
            Arm("proxy", rule=Static(1.0), experts=one),
            Arm("zero", rule=Static(0.0), experts=one),
            Arm("mixed", rule=Static(mixed), experts=several),
            Arm("dynamic", rule=MatchKL(), experts=one),
            Arm("joint", rule=MatchKL(low=-0.5, high=1.5, experts="joint"), experts=several[:2]),
            Arm("contrastive", rule=Contrastive()),
            Arm("small base", base=one[0], rule=Static(-0.5), experts=("base",)),
        ]

    def generated(self, requests: list[GenerateRequest], arms: list[Arm]) -> dict[tuple[int, str], Generated]:
        return {(i, name): answer for i, name, answer in self.engine.generate(requests, arms)}

    def scored(self, requests: list[ScoreRequest], arms: list[Arm]) -> dict[tuple[int, str], Scored]:
        return {(i, name): answer for i, name, answer in self.engine.score(requests, arms)}


@pytest.fixture(scope="module", params=[*FAMILIES, "adapters"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    folder = tmp_path_factory.mktemp(request.param)
    family = save(request.param, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROXYTUNE_CACHE", str(folder / "cache"))
        yield from _started(family)


def _started(family: FamilySpec) -> Iterator[Both]:
    engine = VLLMEngine(describe(family), family, batch_size=32, memory=1)
    yield Both(engine, load(family))
    engine.close()
    gc.collect()


def test_every_arm_in_one_batch_chooses_the_tokens_of_the_slow_loop(both: Both):
    """Prompts of 1 to 150 tokens, longer than the sliding windows."""
    requests = [GenerateRequest(Prompt(tokens), NEW) for tokens in prompts(12, 150)]
    answers = both.generated(requests, both.arms)
    assert len(answers) == 12 * len(both.arms)
    for (i, name), answer in answers.items():
        arm = next(arm for arm in both.arms if arm.name == name)
        assert answer.finish == "eos" or len(answer.tokens) == NEW
        assert wrong(both.ensemble, arm, requests[i].prompt.tokens, answer.tokens) == [], (i, name)


def test_answers_end_where_those_of_the_default_engine_end(both: Both):
    """Stop strings, the end token, the length, and a request that fills the window to its last token."""
    alphabet = tuple(both.ensemble.tokenizer.decode([token]) for token in range(60, 80))
    requests = [
        *(GenerateRequest(Prompt(tokens), NEW, until=alphabet) for tokens in prompts(6, 60, seed=1)),
        GenerateRequest(Prompt(prompts(2, WINDOW - 6, seed=2)[1]), 7),
        GenerateRequest(Prompt((5, 6, 7)), 0),
    ]
    expected = {(i, name): answer for i, name, answer in HFEngine(both.ensemble).generate(requests, both.arms)}
    found = both.generated(requests, both.arms)
    assert found.keys() == expected.keys()
    for key, answer in found.items():
        assert (answer.tokens, answer.text, answer.finish) == (
            expected[key].tokens,
            expected[key].text,
            expected[key].finish,
        ), key
        assert [len(steps) for steps in answer.weights] == [len(answer.tokens)] * len(expected[key].weights)
    assert {answer.finish for answer in found.values()} >= {"stop", "length"}


def test_sampled_answers_are_those_of_the_default_engine(both: Both):
    """Each token's noise is that of its request's seed and step, and banned tokens never come."""
    requests = [
        GenerateRequest(Prompt(tokens), 12, temperature=0.5 + seed, top_p=0.8 + 0.1 * (seed % 3), seed=seed)
        for seed, tokens in enumerate(prompts(6, 60, seed=7))
    ]
    greedy = GenerateRequest(requests[1].prompt, 12)
    [(_, _, plain)] = both.engine.generate([greedy], [Arm("base")])
    requests += [greedy, replace(greedy, banned=tuple(set(plain.tokens)))]
    expected = {(i, name): answer.tokens for i, name, answer in HFEngine(both.ensemble).generate(requests, both.arms)}
    assert {key: answer.tokens for key, answer in both.generated(requests, both.arms).items()} == expected
    assert not {*expected[7, "base"]} & {*plain.tokens}


def test_scores_are_those_of_the_slow_loop_at_the_weights_that_vllm_chose(both: Both):
    texts = prompts(6, 100, seed=3)
    requests = [ScoreRequest(Prompt(text[:1]), text[1:]) for text in texts if len(text) > 1]
    requests.append(ScoreRequest(Prompt(prompts(2, WINDOW - 1, seed=4)[1]), (8, 9)))
    for (i, name), answer in both.scored(requests, both.arms).items():
        arm = next(arm for arm in both.arms if arm.name == name)
        logits = _fused_at(both.ensemble, arm, requests[i], torch.tensor(answer.weights))
        n = len(requests[i].continuation)
        expected = logits.log_softmax(-1)[range(n), requests[i].continuation]
        torch.testing.assert_close(torch.tensor(answer.logprobs), expected, atol=1e-4, rtol=1e-4)
        assert list(answer.greedy) == (logits.argmax(-1) == torch.tensor(requests[i].continuation)).tolist()


def _fused_at(ensemble: Ensemble, arm: Arm, request: ScoreRequest, weights: torch.Tensor) -> torch.Tensor:
    """The slow loop's logits [n, V]. Of a rule that chooses weights, at those given, which must be as good as its own:
    the loss is flat, or has two minima, where rounding decides."""
    n = len(request.continuation)
    fused = fused_after(ensemble, arm, request.prompt, request.continuation)
    if not isinstance(arm.rule, MatchKL):
        torch.testing.assert_close(weights.view(fused.weights[:, :n].shape), fused.weights[:, :n])
        return fused.logits[:n]
    tokens = request.prompt.tokens + request.continuation
    read = {role: plain_logits(ensemble, role, tokens)[len(request.prompt.tokens) - 1 : -1] for role in arm.roles}
    base, antiexpert = read["base"], read["antiexpert"]
    experts = torch.stack([read[role] for role in arm.experts])
    own, theirs = (arm.rule.loss(base, experts, antiexpert, w) for w in (fused.weights[:, :n], weights))
    # The joint search ends where a step gains less than a thousandth of the loss: rounding decides at which.
    torch.testing.assert_close(theirs, own, atol=1e-3, rtol=1e-2 if arm.rule.experts == "joint" else 1e-3)
    return base + (weights[..., None] * (experts - antiexpert)).sum(0)


def test_logits_that_are_not_finite_are_no_answer(both: Both):
    """As in the default engine; other arms of the same batch answer."""
    arms = [Arm("overflow", rule=Static(3e38), experts=both.experts[:1]), Arm("base")]
    requests, texts = [GenerateRequest(Prompt((5, 6, 7)), 5)], [ScoreRequest(Prompt((5,)), (6, 7, 8, 9))]
    default = HFEngine(both.ensemble)
    for i, name, expected in default.generate(requests, arms):
        answer = both.generated(requests, arms)[i, name]
        assert (answer.tokens, answer.finish) == (expected.tokens, expected.finish)
        assert (answer.finish == "undefined") == (name == "overflow")
    for i, name, expected in default.score(texts, arms):
        scored = both.scored(texts, arms)[i, name]
        assert (scored.undefined(True) is None) == (expected.undefined(True) is None), name


def test_nothing_is_silently_ignored(both: Both):
    for request, message in [
        (GenerateRequest(Prompt((5,), {"base": (6,)}), 5), "a prompt of its own"),
        (GenerateRequest(Prompt(()), 5), "empty prompt"),
        (GenerateRequest(Prompt((5,)), WINDOW + 1), f"reads at most {WINDOW} tokens"),
    ]:
        with pytest.raises(UserError, match=message):
            list(both.engine.generate([request], both.arms))
    with pytest.raises(UserError, match="two arms are called"):
        list(both.engine.generate([], [Arm("base"), Arm("base")]))
