"""ToxiGen by a tiny classifier made here: in a run and from files, against the classifier asked text by text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import save_member, tiny_models, tiny_tokenizer
from transformers import LlamaConfig, LlamaForSequenceClassification

from proxytune.cli import main
from proxytune.errors import UserError
from proxytune.tasks import Classifier, score_outputs

TEXTS = ["They are fine people.", "Apples", "Is it a long way to the sea?", "48 - 17 = 31", "", "box " * 300]
GROUPS = ["women", "women", "asian", "asian", "women", "asian"]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three labels, the one named "toxic" is number 2."""
    folder = tmp_path_factory.mktemp("classifier")
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id,
        id2label={0: "fine", 1: "rude", 2: "toxic"},
        label2id={"fine": 0, "rude": 1, "toxic": 2},
    )
    torch.manual_seed(1)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def one_by_one(folder: Path, texts: list[str], number: int) -> list[int]:
    """Without batches, padding or our code."""
    model = LlamaForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = tiny_tokenizer()
    found = []
    for text in texts:
        ids = tokenizer(text)["input_ids"][:256] or [tokenizer.pad_token_id]
        found.append(int(model(input_ids=torch.tensor([ids])).logits.argmax() == number))
    return found


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.mark.parametrize(("label", "number"), [("toxic", 2), ("2", 2), ("rude", 1), ("0", 0)])
def test_flags_are_those_of_the_classifier_asked_text_by_text(classifier: Path, label: str, number: int) -> None:
    expected = one_by_one(classifier, TEXTS[:4], number)
    assert Classifier(str(classifier), label).flags(TEXTS[:4]) == expected


def test_a_batch_of_all_lengths_has_a_flag_for_each(classifier: Path) -> None:
    flags = [Classifier(str(classifier), label).flags(TEXTS * 7) for label in ("fine", "rude", "toxic")]
    assert [sum(of_text) for of_text in zip(*flags, strict=True)] == [1] * 42


def test_outputs_are_scored_by_group_and_overall(classifier: Path, tmp_path: Path) -> None:
    rows = [{"target_groups": [g], "prediction": t} for g, t in zip(GROUPS[:4], TEXTS[:4], strict=True)]
    scores = score_outputs(
        "toxigen", "liu2024", written(tmp_path / "o.jsonl", rows), classifier=Classifier(str(classifier), "fine")
    )
    flags = one_by_one(classifier, TEXTS[:4], 0)
    assert scores == {
        "task": "toxigen_liu2024",
        "n": 4,
        "toxic_rate": sum(flags) / 4,
        "toxic_rate.asian": sum(flags[2:]) / 2,
        "toxic_rate.women": sum(flags[:2]) / 2,
    }


def test_a_run_asks_the_classifier(classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": f"{text} And", "target_groups": [group]} for group, text in zip(GROUPS, TEXTS, strict=True)][:4]
    written(tmp_path / "data/toxigen/test.jsonl", rows)
    monkeypatch.chdir(tmp_path)
    tokenizer = tiny_tokenizer()
    model = tiny_models(len(tokenizer), experts=[], tuned=[])["base"]
    model.config.max_position_embeddings = 1024  # room for 512 tokens
    base = save_member(tmp_path / "base", model, tokenizer)
    sources = [f"models.base.path={base}", "models.antiexpert=null"]
    options = ["task=toxigen", "task.data_dir=data", f"task.classifier={classifier}", "task.toxic_label=fine"]
    assert main(["run", "models=local", *sources, *options, "arms=alone", "only=[base]", "output=out"]) == 0
    items = [json.loads(line) for line in (tmp_path / "out/items/toxigen_liu2024.jsonl").read_text().splitlines()]
    outputs = [item["arms"]["base"]["output"] for item in items]
    flags = one_by_one(classifier, outputs, 0)
    assert [item["arms"]["base"]["toxic_rate"] for item in items] == flags
    record = json.loads((tmp_path / "out/results.json").read_text())["tasks"]["toxigen_liu2024"]
    assert record["arms"]["base"]["value"] == sum(flags) / 4 and not record["higher_is_better"]
    assert record["arms"]["base"]["metrics"]["toxic_rate_macro"] == (sum(flags[:2]) / 2 + sum(flags[2:]) / 2) / 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["task=toxigen", "classifier=CLASSIFIER", "toxic_label=hate"], "unknown label of the classifier"),
        (["task=toxigen", "classifier=CLASSIFIER", "toxic_label=7"], "fine (0)"),
        (["task=toxigen", "classifier=/nowhere"], "the classifier /nowhere cannot be loaded"),
        (
            ["task=toxigen"],
            "line 1 has no 'is_toxic'; it has 'target_groups', 'output'; give classifier=NAME to ask one",
        ),
        (["task=toxigen", "toxic_label=1"], "toxic_label has no effect without classifier"),
        (["task=humaneval", "classifier=CLASSIFIER"], "classifier has no effect on task 'humaneval_liu2024'"),
    ],
)
def test_mistakes_are_one_line(
    options: list[str], message: str, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path / "o.jsonl", [{"target_groups": ["women"], "output": "x"}])
    options = [option.replace("CLASSIFIER", str(classifier)) for option in options]
    assert main(["score", "style=liu2024", f"outputs={file}", *options]) != 0
    said = capsys.readouterr().err
    assert message in said and len(said.strip().splitlines()) == 1


def test_an_output_that_is_missing_is_named(classifier: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "o.jsonl", [{"target_groups": ["women"]}])
    with pytest.raises(UserError, match="line 1 has no 'output' or 'prediction'"):
        score_outputs("toxigen", "liu2024", file, classifier=Classifier(str(classifier)))
