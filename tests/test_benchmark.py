"""The benchmark of decoding times contenders that say the same."""

from __future__ import annotations

from pathlib import Path

import torch

from proxytune.engines.requests import GenerateRequest, Prompt
from proxytune.fusion import Static


def test_what_is_timed_side_by_side_answers_the_same(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "scripts")
    from benchmark_decode import Setting, agreement, contenders, generate, loop
    from benchmark_family import EXPERT, family, ratio, timed

    ensemble = family(None, hidden=64, layers=1, small=64, vocab=64)
    requests = [GenerateRequest(Prompt(tuple(range(3, 3 + length))), 5) for length in (4, 6, 6, 5)]
    setting = Setting(ensemble, EXPERT, requests, 2)
    assert agreement(setting) == "4 and 4 of 4"
    base = setting.model("base")
    for rows in setting.rows:
        width = max(map(len, rows))
        assert torch.equal(generate(base, rows, 5)[:, width:], loop([base], rows, 5))
    seconds = timed(1, **contenders(setting))
    assert ratio(seconds, "static", "static")["ratio"] == 1
    drafted = setting.with_drafts(setting.arm(Static(1.0)))
    assert [request.drafts for request in drafted] == [
        (setting.answers(setting.arm(Static(1.0)), "off")[index],) for index in range(4)
    ]
