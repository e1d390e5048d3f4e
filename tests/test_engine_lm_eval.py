"""One model alone against lm-evaluation-harness's own HFLM: the same log-likelihoods and the same texts."""

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from proxytune.engines.hf import HFEngine
from proxytune.engines.requests import GenerateRequest, Prompt, ScoreRequest
from proxytune.fusion.arm import Arm

ROLE = "expert:math"
"""Its head has no padding rows, which HFLM would count among the tokens."""
CONTEXTS = [
    "Question: how many apples are in the red box?\nAnswer:",
    "The river",
    "She had 48 coins and",
    "In which country does the sea begin? It is",
    "(A) Paris, (B)",
]


@pytest.fixture(scope="module")
def hflm(family):
    model = family[ROLE].model
    return HFLM(pretrained=model, tokenizer=family.tokenizer, batch_size=1, max_length=256)


def test_log_likelihoods_are_those_of_hflm(family, hflm):
    pairs = [(context, ending) for context in CONTEXTS for ending in (" 12 apples", " London", " the")]
    theirs = hflm.loglikelihood(
        [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)], disable_tqdm=True
    )
    encoded = [hflm._encode_pair(*pair) for pair in pairs]
    requests = [ScoreRequest(Prompt(tuple(context)), tuple(ending)) for context, ending in encoded]
    for index, _, scored in HFEngine(family).score(requests, [Arm("alone", base=ROLE)]):
        assert sum(scored.logprobs) == pytest.approx(theirs[index][0], abs=2e-4)
        assert all(scored.greedy) == theirs[index][1]


@pytest.mark.parametrize(
    ("until", "max_gen_toks", "finishes"),
    [
        (["\n\n"], 60, {"length", "eos"}),
        (["</s>"], 60, {"length", "eos"}),
        (["e"], 24, {"stop"}),
        # Made of the ends and beginnings of several tokens, and with half a character before them.
        ([" following are", "waying", "tC"], 24, {"stop", "length"}),
        (["ry5", "red"], 24, {"stop", "length"}),
    ],
)
def test_generated_texts_are_those_of_hflm(family, hflm, until, max_gen_toks, finishes):
    settings = {"until": until, "max_gen_toks": max_gen_toks, "do_sample": False, "temperature": 0.0}
    theirs = hflm.generate_until(
        [Instance("generate_until", {}, (context, settings), i) for i, context in enumerate(CONTEXTS)],
        disable_tqdm=True,
    )
    requests = [GenerateRequest(Prompt(tuple(hflm.tok_encode(c))), max_gen_toks, tuple(until)) for c in CONTEXTS]
    ours = {index: answer for index, _, answer in HFEngine(family).generate(requests, [Arm("alone", base=ROLE)])}
    assert [ours[i].text for i in range(len(CONTEXTS))] == theirs
    assert {answer.finish for answer in ours.values()} == finishes
