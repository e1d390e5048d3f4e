"""A series of prompts on which speculation must give the tokens of decoding one by one, and of a loop without a cache.

    PROXYTUNE_SERIES=1000 PROXYTUNE_SERIES_SEED=0 pytest tests/test_speculation_series.py -s

are 1000 prompts over all families; as a part of the suite there are 12. Another seed gives other prompts. Families are
made so that their members often agree, or that pairs of tokens are nearly tied; one has members with a sliding window,
one is the miniature. Where rounding decides, which depends on the width of a matrix product, the tokens may differ.
Such places are counted, and each is checked: without a cache and with the members' logits moved by `ROUNDING` of their
size, both tokens must be chosen.
"""

import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from unittest import mock

import engine_reference as reference
import numpy as np
import pytest
import torch
from test_speculation import SIX, kin, spoken
from tiny import tiny_family, tiny_mistral

from proxytune import miniature
from proxytune.engines.requests import GenerateRequest, Prompt
from proxytune.models import load
from proxytune.models.ensemble import Ensemble

PROMPTS = int(os.environ.get("PROXYTUNE_SERIES", "12"))
SEED = int(os.environ.get("PROXYTUNE_SERIES_SEED", "0"))
ROUNDING = 3e-6
SETS = {"static": SIX[2:3], "dynamic": SIX[4:5], "joint": SIX[5:6], "six": SIX}


def tied() -> Ensemble:
    """Every even token and the next one have heads that differ by a millionth: their logits are nearly equal."""
    family = kin(0.02)
    for member in family.members.values():
        head = member.model.lm_head.weight.data
        even = head[0 : len(head) - 1 : 2]
        head[1 : 2 * len(even) : 2] = even * (1 + 1e-6 * torch.randn(len(even), 1))
    return family


def windowed() -> Ensemble:
    """One expert sees five tokens alone: its arms are decoded without drafts."""
    family = kin(0.02)
    member = replace(family["expert:trivia"], model=tiny_mistral(family.vocab_size, seed=3))
    return Ensemble({**family.members, "expert:trivia": member}, family.tokenizer)


def trained() -> Ensemble:
    """The miniature; its experts for arithmetic and for news have the names of the others' experts."""
    roles = {"expert:math": "expert:gsm", "expert:trivia": "expert:cnn"}
    loaded = load(miniature.family(), ["base", "antiexpert", *roles.values()])
    members = {role: replace(loaded[name], role=role) for role, name in roles.items()}
    return Ensemble({"base": loaded["base"], "antiexpert": loaded["antiexpert"], **members}, loaded.tokenizer)


FAMILIES = {
    "near": lambda: kin(0.02),
    "apart": lambda: kin(0.1),
    "tied": tied,
    "unlike": tiny_family,
    "windowed": windowed,
    "trained": trained,
}
"""Of "unlike" one expert is a GPT-2."""


def question(family: Ensemble, number: int) -> tuple[int, ...]:
    """An item of the miniature's arithmetic."""
    items = (Path(miniature.family().data_dir) / "gsm" / "test.jsonl").read_text().splitlines()
    text = json.loads(items[number % len(items)])["question"]
    return tuple(family.tokenizer.encode(f"question : {text} answer :"))


def requests(kind: str, family: Ensemble, count: int) -> list[GenerateRequest]:
    """Half of them sampled, of ragged lengths, some with a stop string and some with a chat expert's own prompt."""
    drawn = np.random.default_rng((sorted(FAMILIES).index(kind), SEED))
    found = []
    for i in range(count):
        tokens = tuple(map(int, drawn.integers(3, 380, size=drawn.integers(1, 12))))
        if kind == "trained":
            tokens = question(family, int(drawn.integers(1000)))
        own = {"expert:math": (90, 91, *tokens)} if i % 5 == 0 else {}
        sampled = {"temperature": 0.7, "top_p": 0.9 if i % 4 == 1 else 1.0, "seed": SEED + i} if i % 2 else {}
        until = ("e", " the") if i % 3 == 0 else ()
        found.append(GenerateRequest(Prompt(tokens, own), int(drawn.integers(5, 17)), until, **sampled))
    return found


@pytest.mark.parametrize("kind", FAMILIES)
def test_no_token_differs_but_by_rounding(kind):
    family = FAMILIES[kind]()
    asked = requests(kind, family, -(-PROMPTS // len(FAMILIES)))
    seen, wrong = Counter(), []
    for (name, arms), (batch_size, speculate) in ((a, b) for a in SETS.items() for b in ((1, 6), (8, "auto"))):
        plain = spoken(family, asked, arms, 0, batch_size)[1]
        engine, found = spoken(family, asked, arms, speculate, batch_size)
        seen += Counter(answers=len(plain), drafted=engine.meter.drafted, accepted=engine.meter.accepted)
        by_name = {arm.name: arm for arm in arms}
        for (index, arm), answer in plain.items():
            got, request = found[index, arm], asked[index]
            pairs = []
            if (got.tokens, got.text, got.finish) != (answer.tokens, answer.text, answer.finish):
                pairs.append((got.tokens, answer.tokens))
            if batch_size == 1 and (slow := without_cache(family, by_name[arm], request, got.tokens)) != got.tokens:
                pairs.append((got.tokens, slow))
            seen["differ"] += len(pairs)
            if any(choices(family, by_name[arm], request, *pair) < 2 for pair in pairs):
                wrong.append((name, arm, index, batch_size))
    print(kind, dict(seen), wrong)
    assert seen["accepted"] > 0
    assert not wrong


def without_cache(family, arm, request, tokens) -> tuple[int, ...]:
    """What is chosen after the prompt and each beginning of `tokens`, all read at once."""
    rows = reference.fused_after(family, arm, request.prompt, tokens[:-1]).logits
    return tuple(reference.next_token(row, request, step) for step, row in enumerate(rows))


def choices(family, arm, request, one, other) -> int:
    """How many of the first two tokens that differ are chosen where rounding is at most as large as `ROUNDING`."""
    step = next(i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])
    plain = reference.plain_logits
    chosen = set()
    for size in (ROUNDING / 10, ROUNDING) * 20:

        def moved(*args, size=size):
            logits = plain(*args)
            return logits + size * logits.abs().amax(-1, keepdim=True) * torch.randn_like(logits)

        with mock.patch.object(reference, "plain_logits", moved):
            row = reference.fused_after(family, arm, request.prompt, one[:step]).logits[-1]
        chosen.add(reference.next_token(row, request, step))
    return len(chosen & {one[step], other[step]})
