"""Run folders made by hand for the report: any number of items, any texts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

ARMS = ("base", "tuned", "proxy")
RULE = {"id": "static", "formula": "base + a (expert - antiexpert)", "paper": "Liu et al. 2024", "parameters": {}}
HOSTILE = {
    "html": "<b>bold</b> <img src=x onerror=\"window.ran = 'img'\"> &lt;i&gt;",
    "script": "</script><script>window.ran = 'script'</script><!-- <script>",
    "direction": "left \u202eright\u202c and \u200f mark",
    "zero width": "zero\u200bwidth\ufeff and\u2028line",
    "surrogate": "half \ud83d of a character",
    "template": "{{ 7 * 7 }} {% raw %} ${window.ran = 1}",
    "quote": "\" onmouseover=\"window.ran = 'quote'\" ' autofocus",
}


def item(number: int, right: Mapping[str, bool], prompt: str = "", said: str = "") -> dict[str, Any]:
    """One row of an items' file: an arm that is right says the target."""
    arms = {}
    for arm, is_right in right.items():
        output = f"{said}{number}" if is_right else f"{said}not {number}"
        weights = {"math": [[0.5, 1.5]]} if arm == "proxy" else None
        arms[arm] = {"output": output, "answer": output, "exact_match": float(is_right), "weights": weights}
    prompt = prompt or f"Question: what is the number {number}?"
    return {
        "doc_id": number,
        "prompt": prompt,
        "choices": None,
        "target": str(number),
        "truncated_tokens": 0,
        "arms": arms,
    }


def items(count: int) -> list[dict[str, Any]]:
    """base is right at every third item, proxy at every other one, tuned always."""
    return [item(i, {"base": i % 3 == 0, "tuned": True, "proxy": i % 2 == 0}) for i in range(count)]


def arm(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    value = sum(row["arms"][name]["exact_match"] for row in rows) / max(1, len(rows))
    estimate = {"value": value, "stderr": 0.02, "n": len(rows)}
    return {
        **estimate,
        "gap_closed": 0.5,
        "gap_closed_ci": [0.4, 0.6],
        "differences": {"base": {"value": 0.25, "stderr": 0.01, "n": len(rows)}},
        "roles": ["base", "expert:math", "antiexpert"] if name == "proxy" else [name],
        "rule": RULE if name == "proxy" else None,
        "weights": {"math": {"mean": 1.0, "sd": 0.5}} if name == "proxy" else {},
    }


def task(rows: list[dict[str, Any]]) -> dict[str, Any]:
    arms = {name: arm(rows, name) for name in rows[0]["arms"]}
    return {
        "metric": "exact_match",
        "higher_is_better": True,
        "n": len(rows),
        "references": {"base": "base"},
        "arms": arms,
    }


def write_items(folder: Path, tasks: Mapping[str, list[dict[str, Any]]]) -> None:
    (folder / "items").mkdir(parents=True, exist_ok=True)
    for name, rows in tasks.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "items" / f"{name}.jsonl").write_text(text, encoding="utf-8")


def write_run(folder: Path, tasks: Mapping[str, list[dict[str, Any]]], **record: Any) -> Path:
    """A finished run; `record` replaces parts of its `results.json`."""
    write_items(folder, tasks)
    results = {"tasks": {name: task(rows) for name, rows in tasks.items()}, "provenance": {}, **record}
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return folder


def write_overrides(folder: Path, *overrides: str, **config: Any) -> None:
    """What Hydra notes of a run (JSON is YAML)."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps(overrides), encoding="utf-8")
    (folder / ".hydra" / "config.yaml").write_text(json.dumps(config), encoding="utf-8")


def write_traces(folder: Path, task: str, texts: Sequence[str], items: Iterable[int] = (0,)) -> None:
    """Traces of proxy with the likeliest tokens, its p_base falling from 0.9 below p_fused = 0.5, and of base alone."""
    shared = {"task": task}
    tokens = [{"item": item, "step": step, "text": text} for item in items for step, text in enumerate(texts)]
    tops = {f"top_{model}": [{"text": f"{model} likes this", "p": 0.75}] for model in ("fused", "expert:math")}
    proxy = {"arm": "proxy", "p_fused": 0.5, "alpha_math": 1.25, **tops}
    rows = [
        {**shared, **proxy, **token, "p_base": 0.9 - 0.4 * token["step"], "differs": token["step"] == 2}
        for token in tokens
    ]
    rows += [{**shared, "arm": "base", "p_fused": 1.0, **token} for token in tokens]
    (folder / "traces").mkdir()
    pd.DataFrame(rows).to_parquet(folder / "traces" / f"{task}.parquet")
