"""The arms of conf/arms/neighbours.yaml through the engine, each against transformers or a loop without a cache."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from tiny import tiny_family, tiny_llama, tiny_tokenizer
from torch import Tensor

from proxytune.cli import build
from proxytune.engines.hf import HFEngine
from proxytune.engines.requests import GenerateRequest, Prompt
from proxytune.experiment.arm_spec import arm_specs
from proxytune.experiment.arms import resolve
from proxytune.folders import config_dir
from proxytune.fusion.arm import Arm
from proxytune.fusion.match_kl import MatchKL
from proxytune.fusion.mixture import Mixture
from proxytune.models import Ensemble, FamilySpec

TOKENS = 6


def nucleus(base: Tensor, top_p: float = 0.9) -> Tensor:
    """The tokens [V] inside the base's nucleus."""
    p, order = base.softmax(-1).sort(descending=True)
    return torch.zeros_like(base, dtype=torch.bool).index_fill(0, order[: int((p.cumsum(0) < top_p).sum()) + 1], True)


def among(kept: Tensor, logits: Tensor) -> Tensor:
    return logits.masked_fill(~kept, -torch.inf)


def dynamic(base: Tensor, expert: Tensor, anti: Tensor) -> Tensor:
    return MatchKL().fuse(base, expert[None], anti).logits


BY_HAND: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "proxy": lambda base, expert, anti: base + expert - anti,
    "dexperts": lambda base, expert, anti: among(nucleus(base), base + expert - anti),
    "contrastive": lambda base, expert, anti: among(
        base.softmax(-1) >= 0.1 * base.softmax(-1).max(), base.log_softmax(-1) - anti.log_softmax(-1)
    ),
    "novelty": lambda base, expert, anti: expert + 0.5 * (expert - anti),
    "ensemble": lambda base, expert, anti: (0.5 * base.softmax(-1) + 0.5 * expert.softmax(-1)).log(),
    "dynamic_nucleus": lambda base, expert, anti: among(nucleus(base), dynamic(base, expert, anti)),
}


@pytest.fixture(scope="module")
def family() -> Ensemble:
    return tiny_family(experts=["math"], tuned=["math"])


@pytest.fixture(scope="module")
def arms() -> dict[str, Arm]:
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir())):
        node = OmegaConf.to_container(compose("run", ["models=local", "task=gsm8k", "arms=neighbours"]).arms)
    spec = FamilySpec(base="b", antiexpert="a", experts={"math": "e"}, tuned={"math": "t"})  # type: ignore[arg-type, dict-item]
    return resolve(build.arms(arm_specs(node)), spec, "gsm8k", "math").present  # type: ignore[arg-type]


PROMPTS = ("Question: how many apples are there? Answer:", "In which country", "48 - 17 =")


def test_every_arm_of_the_file_is_tried(arms) -> None:
    assert {name for name, arm in arms.items() if arm.rule is not None} == set(BY_HAND)
    assert arms["contrastive"].roles == ("base", "antiexpert") and "base" not in arms["novelty"].roles


@pytest.mark.parametrize("name", BY_HAND)
def test_answers_are_those_of_a_loop_without_a_cache(name: str, family: Ensemble, arms: dict[str, Arm]) -> None:
    for text in PROMPTS:
        prompt = tuple(family.tokenizer(text)["input_ids"])
        [(_, _, answer)] = HFEngine(family).generate([GenerateRequest(Prompt(prompt), TOKENS)], [arms[name]])
        tokens = list(prompt)
        ends = family.ends(arms[name].roles)
        while len(tokens) < len(prompt) + TOKENS and not (len(tokens) > len(prompt) and tokens[-1] in ends):
            with torch.inference_mode():
                base, expert, anti = (
                    family[role].model(input_ids=torch.tensor([tokens])).logits[0, -1, : family.vocab_size].float()
                    for role in ("base", "expert:math", "antiexpert")
                )
            tokens.append(int(BY_HAND[name](base, expert, anti).argmax()))
        assert list(answer.tokens) == tokens[len(prompt) :]


@pytest.mark.parametrize("weight", [0.3, 0.5, 0.8])
def test_the_ensembles_token_is_that_of_transformers(weight: float) -> None:
    """Whose `assistant_ensemble_weight` verifies a draft of one token against w p_model + (1 - w) p_assistant."""
    tokenizer = tiny_tokenizer()
    base, expert = (tiny_llama(len(tokenizer), seed=seed).eval() for seed in (1, 2))
    decided = []
    for text in (*PROMPTS, *(f"{word} and {word}" for word in ("Paris", "apples", "the sea", "box", "three", "Ann"))):
        prompt = tokenizer(text, return_tensors="pt")["input_ids"]
        drafted = {"assistant_model": expert, "assistant_ensemble_weight": weight, "num_assistant_tokens": 1}
        theirs = base.generate(prompt, **drafted, do_sample=False, max_new_tokens=2)[0, prompt.shape[1]]
        with torch.inference_mode():
            first, second = (model(input_ids=prompt).logits[0, -1] for model in (base, expert))
        assert Mixture(1 - weight).fuse(first, second[None]).logits.argmax() == theirs
        decided.append((bool(first.argmax() == theirs), bool(second.argmax() == theirs)))
    assert len(set(decided)) > 1, "the same model must not decide everywhere"
