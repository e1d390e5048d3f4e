"""Runs whose answers other models judge: TruthfulQA's open answers and AlpacaFarm, from the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from api_server import KEY, Served, serving
from invented import GENERATION, jsonl
from judge_models import classified, save_classifier
from tiny import save_member, tiny_models, tiny_tokenizer

from proxytune.cli import main
from proxytune.record import ArmRecord, read_record


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two models alone answer; their windows have room for long answers, which end at once."""
    monkeypatch.chdir(tmp_path)
    tokenizer = tiny_tokenizer()
    made = tiny_models(len(tokenizer), experts=["chat"], tuned=[])
    for model in made.values():
        model.config.max_position_embeddings = 4096
    folders = {role: save_member(tmp_path / role.replace(":", "_"), made[role], tokenizer) for role in made}
    tokens = tokenizer.convert_ids_to_tokens(list(range(260, 360)))
    ends = json.dumps([token for token in tokens if token.isalpha()], ensure_ascii=False)
    sources = [f"models.base.path={folders['base']}", f"models.antiexpert.path={folders['antiexpert']}"]
    return [
        *("run", "models=local", "arms=liu2024", "only=[base,expert]", "task.data_dir=data", "store=s.sqlite"),
        *(*sources, f"+models.experts.chat.path={folders['expert:chat']}", f"+models.end_tokens={ends}"),
    ]


def items(folder: str, task: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(folder, f"items/{task}.jsonl").read_text().splitlines()]


def arms(folder: str, task: str) -> dict[str, ArmRecord]:
    return dict(read_record(folder).tasks[task].arms)


def trimmed(output: str) -> str:
    return output.strip().removeprefix("Answer:").strip().replace("\n\n", "\n").strip()


def test_open_answers_are_judged_true_and_informative(command: list[str], capsys) -> None:
    jsonl(Path("data/truthfulqa/generation_validation.jsonl"), *GENERATION)
    judge = save_classifier(Path("judge").absolute(), ["no", "yes"])
    judges = [f"task.judge_true={judge}", f"task.judge_informative={judge}", "task.judge_label=yes"]
    assert main([*command, "task=truthfulqa_open", *judges, "output=out"]) == 0
    for arm, record in arms("out", "truthfulqa_open_liu2024").items():
        rows = items("out", "truthfulqa_open_liu2024")
        found = {}
        for name, word in (("true", "True"), ("informative", "Helpful")):
            asked = [
                f"Q: {question['question']}\nA: {trimmed(row['arms'][arm]['output'])}\n{word}:"
                for question, row in zip(GENERATION, rows, strict=True)
            ]
            found[name] = classified(judge, asked)
            assert record.metrics[name] == sum(found[name]) / 2
        assert record.value == sum(t * i for t, i in zip(*found.values(), strict=True)) / 2
    assert main([*command, "task=truthfulqa_open", "task.judge_true=null", "task.judge_informative=null"]) == 1
    assert "needs judges: give task.judge_true=MODEL and task.judge_informative=MODEL" in capsys.readouterr().err


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A judge that prefers the longer answer, and cannot read instruction 3."""
    monkeypatch.setenv("PROXYTUNE_API_KEY", KEY)
    server = Served(None, None)

    def reply(body: dict[str, Any]) -> str:
        asked = r"Instruction:\n(.*)\n\nFirst answer:\n(.*)\n\nSecond answer:\n(.*)\n\nThe better answer:"
        found = re.fullmatch(asked, body["messages"][-1]["content"], re.DOTALL)
        assert found is not None
        instruction, first, second = found.groups()
        if instruction == "Do 3.":
            return "?"
        return "0" if len(first) == len(second) else "1" if len(first) > len(second) else "2"

    server.replies = reply
    with serving(server) as running:
        yield running


def test_answers_are_compared_with_the_references(command: list[str], served: Served, capsys) -> None:
    rows = [{"instruction": f"Do {i}.", "output": "word" * 10 ** (i % 2 * 4)} for i in range(4)]
    jsonl(Path("data/alpacafarm/test.jsonl"), *rows)
    judge = ["task.judge=tiny", f"task.judge_api={served.url}", "task.verdicts=verdicts.jsonl"]
    assert main([*command, "task=alpacafarm", *judge, "output=out"]) == 0
    for arm, record in arms("out", "alpacafarm_liu2024").items():
        wins = []
        for row, item in zip(rows[:3], items("out", "alpacafarm_liu2024"), strict=False):
            ours, theirs = len(item["arms"][arm]["output"].strip()), len(row["output"])
            wins.append(0.5 if ours == theirs else float(ours > theirs))
        assert record.value == pytest.approx(sum(wins) / 3) and record.n == 3 and record.n_invalid == 1
        assert record.metrics["without_verdict"] == 1
    assert {json.loads(line)["annotator"] for line in Path("verdicts.jsonl").read_text().splitlines()} == {"tiny"}
    asked = len(served.bodies)
    assert main([*command, "task=alpacafarm", *judge, "output=again"]) == 0
    assert len(served.bodies) - asked == 2 * len(read_record("out").tasks["alpacafarm_liu2024"].arms)  # unreadable ones
    assert read_record("again").tasks == read_record("out").tasks
    assert main([*command, "task=alpacafarm", "output=none"]) == 1
    assert "needs a judge: give task.judge=MODEL and task.judge_api=URL" in capsys.readouterr().err
    assert main([*command, "task=alpacafarm", "task.judge=tiny", "output=none"]) == 1
    assert "task.judge_api=... is missing: task.judge needs it" in capsys.readouterr().err
