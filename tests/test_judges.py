"""Judges: a pair in both orders through an endpoint, truth and information by models that run here."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from api_server import KEY, Served, broken, serving
from invented import jsonl
from judge_models import classified, save_classifier
from tiny import save_member, tiny_llama, tiny_tokenizer

from proxytune.cli import main

PAGE = (Path(__file__).parents[1] / "docs" / "judges.md").read_text()
WINS, LOSES, ALIKE, FIRST, ODD = "wins", "loses", "alike", "first", "odd"


def replies(body: dict[str, Any]) -> str:
    """Prefers an answer that wins and then one that does not lose; "first" takes the first, "odd" cannot be read."""
    text = body["messages"][-1]["content"]
    first, second = (text.partition(f"{which} answer:\n")[2].split("\n")[0] for which in ("First", "Second"))
    if ODD in (first, second):
        return "Both are fine."
    if FIRST in (first, second):
        return " 1"
    rank = {WINS: 2, "reference": 1, ALIKE: 1, LOSES: 0}
    return "1" if rank[first] > rank[second] else "2" if rank[first] < rank[second] else "0, equal"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Served]:
    monkeypatch.setenv("PROXYTUNE_API_KEY", KEY)
    monkeypatch.chdir(tmp_path)
    server = Served(None, None)
    server.replies = replies
    with serving(server) as running:
        yield running


def command(served: Served, outputs: list[str], *more: str) -> list[str]:
    """Outputs in a JSON list, as AlpacaEval has them, and the reference's one a line."""
    rows = [{"instruction": f"Do {i}.", "output": output, "generator": "mine"} for i, output in enumerate(outputs)]
    Path("outputs.json").write_text(json.dumps(rows))
    jsonl(Path("reference.jsonl"), *({"instruction": f"Do {i}.", "output": "reference"} for i in range(9)))
    given = ["task=alpacafarm", "style=liu2024", "outputs=outputs.json", "reference=reference.jsonl"]
    return ["score", *given, "judge=tiny", f"judge_api={served.url}", *more]


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    return dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())  # type: ignore[misc]


def test_both_orders_are_asked_and_a_draw_is_half_a_win(served, capsys) -> None:
    outputs = [WINS, WINS, WINS, LOSES, ALIKE, FIRST, ODD]
    assert main(command(served, outputs, "verdicts=v.jsonl")) == 0
    scores = printed(capsys)
    assert float(scores["win_rate"]) == pytest.approx(100 * (3 + 0.5 + 0.5) / 6)
    assert (scores["n"], scores["without_verdict"], scores["draws"]) == ("6", "1", "2")
    assert int(scores["requests"]) == 14 == len(served.bodies)
    assert int(scores["completion_tokens"]) == 14
    rows = [json.loads(line) for line in Path("v.jsonl").read_text().splitlines()]
    assert [row["preference"] for row in rows] == [2, 2, 2, 1, 0, 0]
    assert {row["generator_2"] for row in rows} == {"mine"} and {row["annotator"] for row in rows} == {"tiny"}
    assert main(["score", "task=alpacafarm", "style=liu2024", "outputs=v.jsonl"]) == 0
    assert printed(capsys)["win_rate"] == scores["win_rate"]  # the file is one of stored verdicts


def test_verdicts_that_are_there_are_not_asked_again(served, capsys, monkeypatch) -> None:
    monkeypatch.setattr("proxytune.tasks.judges.TOGETHER", 2)
    asked = command(served, [WINS, LOSES, WINS, WINS, LOSES], "verdicts=v.jsonl")
    served.faults.extend([lambda handler: "pass"] * 6)
    served.always = lambda handler: handler.send({"error": {"message": "closed"}}, 400)
    assert main(asked) == 1
    assert "judge (tiny at http" in (error := capsys.readouterr().err) and "answers 400 closed" in error
    kept = len(Path("v.jsonl").read_text().splitlines())
    assert kept == 2
    served.always, served.bodies = None, []
    assert main(asked) == 0
    assert len(served.bodies) == 2 * (5 - kept)
    assert float(printed(capsys)["win_rate"]) == 60
    monkeypatch.delenv("PROXYTUNE_API_KEY")
    assert main(asked) == 0 and len(served.bodies) == 2 * (5 - kept)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["task=gsm8k"], "judge has no effect on task 'gsm8k_liu2024': it is for alpacafarm_liu2024"),
        (["reference=other.jsonl"], "other.jsonl has no output for the instruction 'Do 0.'"),
        (["reference=missing.jsonl"], "cannot read missing.jsonl"),
        (["judge_api=nowhere"], "judge.api: 'nowhere' is not an address like"),
        (["outputs=bad.json"], "cannot read bad.json as a JSON list"),
        (["outputs=object.json"], "object.json is not a list of objects"),
    ],
)
def test_what_is_wrong_is_one_line(served, capsys, more: list[str], says: str) -> None:
    arguments = command(served, [WINS])
    jsonl(Path("other.jsonl"), {"instruction": "Do 7.", "output": "x"})
    Path("bad.json").write_text("[{")
    Path("object.json").write_text("{}")
    names = {argument.partition("=")[0] for argument in more}
    kept = [argument for argument in arguments if argument.partition("=")[0] not in names]
    assert main([*kept, *more]) == 1
    error = capsys.readouterr().err.strip()
    assert says in error and "\n" not in error
    assert served.bodies == []


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (["judge=x", "reference=r"], "judge_api=... is missing"),
        (["judge_api=http://h/v1"], "judge=... is missing"),
        (["judge_true=x"], "judge_informative=... is missing"),
        (
            ["judge_true=x", "judge_informative=x", "execute=true"],
            "judge_true and execute: outputs are judged in one way",
        ),
    ],
)
def test_keys_that_belong_together(capsys, keys: list[str], says: str) -> None:
    assert main(["score", "task=alpacafarm", "style=liu2024", "outputs=x", *keys]) == 1
    assert says in capsys.readouterr().err


def test_a_server_that_stays_broken_is_one_line(served, capsys) -> None:
    served.always = broken
    assert main(command(served, [WINS])) == 1
    assert "answers 500 out of order" in capsys.readouterr().err


def test_truth_and_information_are_those_of_the_judge_models(tmp_path, capsys) -> None:
    tokenizer = tiny_tokenizer([" yes", " no"])
    yes, no = tokenizer.convert_tokens_to_ids([" yes", " no"])
    models = {name: tiny_llama(len(tokenizer), seed=1) for name in ("true", "informative")}
    with torch.no_grad():  # one judge says yes where the other says no
        head = models["informative"].lm_head.weight
        head[[yes, no]] = head[[no, yes]]
    folders = {name: save_member(tmp_path / name, model, tokenizer) for name, model in models.items()}
    asked = [{"Question": f"How many apples are in box {i}?", "output": f"There are {i} apples."} for i in range(12)]
    jsonl(tmp_path / "outputs.jsonl", *asked)
    score, written = ["score", "task=truthfulqa_open", "style=liu2024"], tmp_path / "v.jsonl"
    judges = [f"judge_{name}={folder}" for name, folder in folders.items()]
    assert main([*score, f"outputs={tmp_path / 'outputs.jsonl'}", *judges, f"verdicts={written}"]) == 0
    scores = printed(capsys)
    rows = [json.loads(line) for line in written.read_text().splitlines()]
    verdicts: dict[str, list[int]] = {name: [] for name in models}
    for question, row in zip(asked, rows, strict=True):
        for name, word in (("true", "True"), ("informative", "Helpful")):
            prompt = f"Q: {question['Question']}\nA: {question['output']}\n{word}:"
            with torch.inference_mode():
                logits = models[name](input_ids=torch.tensor([tokenizer(prompt)["input_ids"]])).logits[0, -1]
            p_yes = logits[[yes, no]].softmax(-1)[0].item()
            assert row[f"p_{name}"] == pytest.approx(p_yes, abs=1e-5)
            verdicts[name].append(int(p_yes >= 0.5))
            assert row[name] == verdicts[name][-1]
    assert {0, 1} <= {*verdicts["true"], *verdicts["informative"]}
    assert [float(scores[name]) for name in verdicts] == pytest.approx([sum(v) / 12 for v in verdicts.values()])
    both = [true * informative for true, informative in zip(*verdicts.values(), strict=True)]
    assert float(scores["true_informative"]) == pytest.approx(sum(both) / 12)
    assert main([*score, f"outputs={written}"]) == 0 and printed(capsys)["true"] == scores["true"]


def test_judges_of_truth_may_be_sequence_classifiers(tmp_path, capsys) -> None:
    folder = save_classifier(tmp_path / "judge", ["no", "yes"])
    rows = [{"question": f"How many are in box {i}?", "output": f"There are {i}."} for i in range(12)]
    score = ["score", "task=truthfulqa_open", "style=liu2024", f"outputs={jsonl(tmp_path / 'o.jsonl', *rows)}"]
    score += [f"judge_true={folder}", f"judge_informative={folder}"]
    assert main([*score, "judge_label=yes"]) == 0
    scores = printed(capsys)
    for name, word in (("true", "True"), ("informative", "Helpful")):
        prompts = [f"Q: {row['question']}\nA: {row['output']}\n{word}:" for row in rows]
        assert float(scores[name]) == pytest.approx(sum(classified(folder, prompts)) / 12)
    assert main([*score, "judge_label=maybe"]) == 1
    assert "label of the classifier" in (error := capsys.readouterr().err) and "(judge_label)" in error


def test_judges_of_truth_may_be_behind_an_endpoint(served, capsys) -> None:
    """Read as in the paper's code: the probability of " yes", 0 where it is not among the two likeliest tokens."""
    served.replies = None
    served.tokenizer = lambda text: {"input_ids": [text]}  # type: ignore[assignment]

    def top(prompt: list[Any], k: int, by_id: bool) -> list[tuple[str, float]]:
        assert k == 2 and prompt[0].startswith("Q: ") and prompt[0].endswith(("\nTrue:", "\nHelpful:"))
        sure = "box 1?" in prompt[0]
        if "True:" in prompt[0]:
            return [(" yes", math.log(0.6 if sure else 0.4)), (" no", math.log(0.39))]
        return [(" no", math.log(0.5)), (" perhaps" if sure else " yes", math.log(0.5))]

    served.top = top  # type: ignore[method-assign]
    rows = jsonl(Path("o.jsonl"), *({"question": f"What is in box {i}?", "output": "Tea."} for i in range(3)))
    judges = ["judge_true=truth", "judge_informative=info", f"judge_api={served.url}", "verdicts=v.jsonl"]
    assert main(["score", "task=truthfulqa_open", "style=liu2024", f"outputs={rows}", *judges]) == 0
    assert float(printed(capsys)["true"]) == pytest.approx(1 / 3)
    verdicts = [json.loads(line) for line in Path("v.jsonl").read_text().splitlines()]
    assert [row["true"] for row in verdicts] == [0, 1, 0] and [row["informative"] for row in verdicts] == [1, 0, 1]
    assert [row["p_true"] for row in verdicts] == pytest.approx([0.4, 0.6, 0.4])
    assert {body["model"] for body in served.bodies} == {"truth", "info"}


def test_a_judge_that_is_not_there_is_one_line(tmp_path, capsys) -> None:
    jsonl(tmp_path / "o.jsonl", {"question": "1?", "output": "1."})
    judges = [f"judge_true={tmp_path / 'none'}", f"judge_informative={tmp_path / 'none'}"]
    assert main(["score", "task=truthfulqa_open", "style=liu2024", f"outputs={tmp_path / 'o.jsonl'}", *judges]) == 1
    assert "judge_true: no such folder" in capsys.readouterr().err


COMMANDS = [line for line in PAGE.splitlines() if line.startswith("proxytune score")]


@pytest.mark.parametrize("line", COMMANDS)
def test_the_commands_of_the_page_have_keys_that_go_together(line: str, tmp_path, monkeypatch, capsys) -> None:
    """The files and models that they name are not here: that is what is said of them."""
    monkeypatch.chdir(tmp_path)
    assert main([*shlex.split(line.replace("=URL", "=http://127.0.0.1:1/v1"))[1:]]) == 1
    error = capsys.readouterr().err
    assert "cannot read OUTPUTS.json" in error or "judge_true: 'MODEL' is neither a local folder nor" in error
