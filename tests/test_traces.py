"""Traces of generated tokens against a loop without a cache, through the store, and as files of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import engine_reference
import pandas as pd
import pytest
import torch

from proxytune.cli import main
from proxytune.engines.hf import HFEngine
from proxytune.engines.requests import Generated, GenerateRequest, Prompt
from proxytune.errors import UserError
from proxytune.experiment import run
from proxytune.experiment.answers.shared import SharedAnswers
from proxytune.experiment.answers.store import AnswerStore, decode, encode
from proxytune.experiment.answers.tracing import Tracing
from proxytune.experiment.lm_eval.arm_model import ItemAnswer
from proxytune.experiment.traces import write_traces
from proxytune.fusion import Fused, Static
from proxytune.fusion.arm import Arm
from proxytune.fusion.match_kl import MatchKL
from proxytune.models.ensemble import Ensemble
from proxytune.record import read_record
from proxytune.reporting import tabulate
from proxytune.reporting.frames import read_traces

MATH, TRIVIA = "expert:math", "expert:trivia"
ARMS = [
    Arm("base"),
    Arm("alone", base=MATH),
    Arm("proxy", rule=Static(1.0), experts=(TRIVIA,)),
    Arm("both", rule=MatchKL(), experts=(MATH, TRIVIA)),
    Arm("other", rule=Static((0.5, -0.5)), experts=(MATH, TRIVIA), base="tuned:math"),
]
TEXTS = ("The answer is: (A) Paris", "how many apples are there? Answer: there are", "She had 48 coins")


def requests(family: Ensemble, levels: Sequence[str] = ("full", "none", "full"), **options) -> list[GenerateRequest]:
    prompts = [Prompt(tuple(family.tokenizer.encode(text))) for text in TEXTS]
    return [GenerateRequest(p, 7, trace=level, **options) for p, level in zip(prompts, levels, strict=True)]


def answers(family: Ensemble, asked: Sequence[GenerateRequest], **options) -> dict[tuple[int, str], Generated]:
    return {(index, arm): answer for index, arm, answer in HFEngine(family, **options).generate(asked, ARMS)}


@pytest.mark.parametrize("options", [{}, {"temperature": 1.3, "top_p": 0.9, "seed": 5}])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_trace_has_what_each_token_was_chosen_from(family: Ensemble, options: dict, batch_size: int):
    asked = requests(family, **options)
    for (index, name), answer in answers(family, asked, batch_size=batch_size).items():
        (arm,) = (arm for arm in ARMS if arm.name == name)
        if asked[index].trace == "none":
            assert answer.trace is None
            continue
        prompt, n = asked[index].prompt, len(answer.tokens)
        fused = engine_reference.fused_after(family, arm, prompt, answer.tokens).logits[:n].softmax(-1)
        own = {
            role: engine_reference.plain_logits(family, role, prompt.of(role) + answer.tokens)[
                len(prompt.of(role)) - 1 :
            ][:n].softmax(-1)
            for role in arm.roles
        }
        trace = answer.trace
        assert trace.p == pytest.approx(fused[range(n), answer.tokens].tolist(), abs=2e-5)
        if arm.rule is None:
            assert trace.p_base == trace.differs == ()
            assert set(trace.top) == {"fused"}
        else:
            assert trace.p_base == pytest.approx(own[arm.base][range(n), answer.tokens].tolist(), abs=2e-5)
            best = own[arm.base].argmax(-1).tolist()
            assert list(trace.differs) == [a != b for a, b in zip(answer.tokens, best, strict=True)]
            assert set(trace.top) == {"fused", *arm.roles}
        for role, tops in trace.top.items():
            probabilities = fused if role == "fused" else own[role]
            for step, top in enumerate(tops):
                best = sorted(probabilities[step].tolist(), reverse=True)[:5]
                assert [p for _, p in top] == pytest.approx(best, abs=2e-5)
                assert [p for _, p in top] == pytest.approx(
                    [probabilities[step, token].item() for token, _ in top], abs=2e-5
                )


class First:
    """A rule that finds tokens 0 and 1 likely, and 0 a little more."""

    id, formula, paper = "first", "0", "none"

    def fuse(self, base, experts, antiexpert):
        logits = torch.zeros_like(base)
        logits[..., 0], logits[..., 1] = 9.0, 8.5
        return Fused(logits, torch.zeros(experts.shape[:-1]))


def test_the_trace_of_token_zero_is_its_own_to_six_decimals(family: Ensemble):
    request = GenerateRequest(Prompt((5, 6)), 3, trace="full")
    [(_, _, answer)] = HFEngine(family).generate([request], [Arm("first", rule=First(), experts=(MATH,))])
    rest = family.vocab_size - 2
    assert answer.tokens == (0, 0, 0)
    assert answer.trace.p == (round(1 / (1 + math.exp(-0.5) + rest * math.exp(-9)), 6),) * 3
    assert [token for token, _ in answer.trace.top["fused"][0][:2]] == [0, 1]
    base = [p for step in answer.trace.top["base"] for _, p in step]
    assert base == [round(p, 6) for p in base] != [round(p, 5) for p in base]


def test_a_trace_changes_no_answer(family: Ensemble):
    plain = answers(family, requests(family, ("none",) * 3))
    traced = answers(family, requests(family, ("full", "summary", "full")))
    assert {key: replace(answer, trace=None) for key, answer in traced.items()} == plain
    assert all(answer.trace.top == {} for (index, _), answer in traced.items() if index == 1)


def test_a_trace_comes_back_from_the_store_as_it_was(family: Ensemble):
    for answer in answers(family, requests(family)).values():
        assert decode(encode(answer)) == answer
        if answer.trace is not None:
            older = {"kind": "generated", **vars(answer), "trace": vars(answer.trace)}
            assert decode(json.dumps(older)) == answer
            if answer.trace.top:
                assert len(encode(answer)) < len(json.dumps(older)) / 1.5


class Counting(HFEngine):
    asked = 0

    def generate(self, requests, arms, progress=None):
        self.asked += len(requests) * len(arms)
        return super().generate(requests, arms, progress)


def taken(
    family: Ensemble, store: AnswerStore, level: str, missing: str = "recompute"
) -> tuple[SharedAnswers, Counting, list[Generated]]:
    engine = Counting(family)
    shared = SharedAnswers(engine, ARMS, store, tracing=Tracing(level, None, missing))
    return shared, engine, shared.answer(ARMS[3], requests(family, (level, "none", level)))


def test_stored_answers_without_their_trace_are_computed_again_or_taken_as_they_are(family: Ensemble):
    store = AnswerStore()
    everything = 3 * len(ARMS)
    _, _, plain = taken(family, store, "none")
    shared, engine, reported = taken(family, store, "summary", "report")
    assert (engine.asked, shared.read) == (0, everything)
    assert reported == plain
    shared, engine, again = taken(family, store, "summary")
    assert (engine.asked, shared.read) == (everything, 0), "the block is computed as a whole"
    assert [replace(answer, trace=None) for answer in again] == plain
    assert again[0].trace is not None and again[1].trace is None
    _, engine, _ = taken(family, store, "summary")
    assert engine.asked == 0, "the store has the traces now"
    _, engine, _ = taken(family, store, "full")
    assert engine.asked == everything, "a summary is not enough"
    _, engine, _ = taken(family, store, "summary")
    assert engine.asked == 0, "a full trace is"
    _, engine, _ = taken(family, store, "none")
    assert engine.asked == 0


def test_the_file_of_a_task_has_a_row_for_each_token(family: Ensemble, tmp_path: Path):
    found = answers(family, requests(family, ("full",) * 3))
    by_arm = {arm.name: {item: [ItemAnswer(found[item, arm.name], 0)] for item in range(3)} for arm in ARMS}
    arms = {arm.name: arm for arm in ARMS}
    path = tmp_path / "traces" / "gsm.parquet"
    record = write_traces(path, "gsm", Tracing("full", 2), by_arm, arms, family.tokenizer)
    rows = pd.read_parquet(path)
    kept = {key: answer for key, answer in found.items() if key[0] < 2}
    assert (record.level, record.items, record.without) == ("full", 2, 0)
    assert record.tokens == len(rows) == sum(len(answer.tokens) for answer in kept.values())
    assert rows["text"].iloc[0] == family.tokenizer.decode([0, rows["token"].iloc[0]])[len("<pad>") :]
    for (item, arm), answer in kept.items():
        part = rows[(rows["item"] == item) & (rows["arm"] == arm)]
        assert part["token"].tolist() == list(answer.tokens)
        assert part["step"].tolist() == list(range(len(answer.tokens)))
        assert part["p_fused"].tolist() == pytest.approx(answer.trace.p)
        if arm == "both":
            assert part["alpha_math"].tolist() == pytest.approx(answer.weights[0])
            assert part["alpha_trivia"].tolist() == pytest.approx(answer.weights[1])
            assert part["differs"].tolist() == list(answer.trace.differs)
            top = part["top_expert:math"].iloc[0]
            assert [(one["token"], one["p"]) for one in top] == [
                (token, pytest.approx(p)) for token, p in answer.trace.top[MATH][0]
            ]
        if arm == "alone":
            assert part[["p_base", "differs", "alpha_math", "top_base"]].isna().all(axis=None)
    pd.testing.assert_frame_equal(
        read_traces(tmp_path, "gsm", top=False),
        rows[[name for name in rows if not name.startswith("top_")]].astype({"task": str, "arm": str}),
    )


def test_a_run_writes_the_traces_of_its_first_items_and_says_so(tmp_path: Path, capsys):
    tasks = "task.names=[miniature_gsm,miniature_tqa]"
    common = ["run", tasks, "limit=3", "only=[base,proxy]", f"store={tmp_path / 'answers.sqlite'}"]
    assert main([*common, f"output={tmp_path / 'plain'}"]) == 0
    assert main([*common, f"output={tmp_path / 'out'}", "trace=summary", "trace_items=2"]) == 0
    plain, traced = read_record(tmp_path / "plain"), read_record(tmp_path / "out")
    assert not (tmp_path / "plain" / "traces").exists()
    assert [path.name for path in (tmp_path / "out" / "traces").iterdir()] == ["miniature_gsm.parquet"]
    rows = read_traces(tmp_path / "out")
    assert set(rows["item"]) == {0, 1} and set(rows["arm"]) == {"base", "proxy"}
    assert traced.tasks["miniature_gsm"].trace.items == 2
    remarks = " ".join(tabulate(traced).remarks)
    assert "miniature_gsm: 2 of 3 items have traces of their tokens (summary)." in remarks
    assert "miniature_tqa: no traces; its answers are scored, not generated." in remarks
    for name, task in plain.tasks.items():
        assert traced.tasks[name].model_copy(update={"trace": None}) == task
    items = [(tmp_path / run / "items" / "miniature_gsm.jsonl").read_bytes() for run in ("plain", "out")]
    assert items[0] == items[1]


def test_answers_that_the_store_has_without_a_trace_are_counted(tmp_path: Path):
    common = ["run", "task.names=[miniature_gsm]", "limit=2", "only=[base]", f"store={tmp_path / 'answers.sqlite'}"]
    assert main([*common, f"output={tmp_path / 'plain'}"]) == 0
    assert main([*common, f"output={tmp_path / 'out'}", "trace=full", "trace_missing=report"]) == 0
    record = read_record(tmp_path / "out")
    assert record.tasks["miniature_gsm"].trace.without == 2
    assert "miniature_gsm: no traces; the answers came from the store without any." in tabulate(record).remarks


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trace=all"], "trace='all' is not allowed"),
        (["trace=full", "trace_items=0"], "trace_items=0 is not allowed"),
        (["trace_items=5"], "trace_items and trace_missing have no effect with trace=none"),
    ],
)
def test_what_cannot_be_traced_is_said_in_one_line(arguments: list[str], message: str, tmp_path: Path, capsys):
    assert main(["run", f"output={tmp_path}", *arguments]) == 1
    assert message in capsys.readouterr().err


class Untraced:
    """An engine of another kind."""

    def __init__(self, ensemble: Ensemble) -> None: ...


def test_an_engine_that_keeps_no_traces_is_refused_before_anything_loads(tmp_path: Path):
    with pytest.raises(UserError, match="Untraced keeps no traces"):
        run({}, ["gsm8k"], {}, Untraced, output_dir=tmp_path, tracing=Tracing("full"))
