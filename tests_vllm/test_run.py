"""`proxytune run engine=vllm` gives the table of `engine=hf`: the same output at every item, scores to 1e-4.

Of two experts that are equally good, rounding decides which one a dynamic rule takes: such items are counted, not
compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from proxytune.cli import main


def run(output: Path, *engine: str) -> dict[str, list[dict]]:
    """The rows of all items by task."""
    assert main(["run", "experiment=miniature", *engine, "limit=10", f"output={output}", "store=null"]) == 0
    return {
        file.stem: [json.loads(line) for line in file.read_text().splitlines()]
        for file in sorted((output / "items").glob("*.jsonl"))
    }


def test_the_miniature_gets_the_same_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PROXYTUNE_CACHE", str(tmp_path / "cache"))
    expected, found = run(tmp_path / "hf", "engine=hf"), run(tmp_path / "vllm", "engine=vllm", "engine.memory=1")
    assert found.keys() == expected.keys() and len(found) >= 5
    compared, ties = 0, 0
    for task, rows in expected.items():
        for row, other in zip(rows, found[task], strict=True):
            assert other["prompt"] == row["prompt"] and other["arms"].keys() == row["arms"].keys()
            for arm, answer in row["arms"].items():
                compared += 1
                if _tie(other["arms"][arm]["weights"], answer["weights"]):
                    ties += 1
                    continue
                where = f"{task}, item {row['doc_id']}, {arm}"
                assert _alike(other["arms"][arm]["output"], answer["output"]), where
    assert compared >= 250 and ties <= 0.03 * compared


def _tie(found: dict[str, list] | None, expected: dict[str, list] | None) -> bool:
    """Whether another expert was chosen at some token: of two that are equally good, rounding decides."""
    pairs = [(found[name], expected[name]) for name in expected or {}] if found is not None else []
    steps = [
        pair
        for ours, theirs in pairs
        for one, other in zip(ours, theirs, strict=True)
        for pair in zip(one, other, strict=True)
    ]
    return any(abs(one - other) > 0.01 for one, other in steps)


def _alike(found: object, expected: object) -> bool:
    if isinstance(expected, float) and isinstance(found, float):
        return found == pytest.approx(expected, abs=1e-4)
    if isinstance(expected, list) and isinstance(found, list):
        return len(found) == len(expected) and all(map(_alike, found, expected))
    return found == expected
