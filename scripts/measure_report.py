"""How large the report of a run is, and how long it takes to write and to open in headless Chromium.

    python scripts/measure_report.py [--items 10000] [--words 60] [--arms 10]

The items are made of random words, which compress worse than real answers that resemble each other.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from proxytune.reporting.report import find_runs, write_report

OPENINGS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--words", type=int, default=60, help="of a prompt and of an answer")
    parser.add_argument("--arms", type=int, default=10)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run, report = Path(folder), Path(folder, "report.html")
        write_run(run, given.items, given.words, [f"arm {number}" for number in range(given.arms)])
        start = time.perf_counter()
        write_report(find_runs([run]), report)
        print(f"written in {time.perf_counter() - start:.1f} s: {report.stat().st_size / 1e6:.1f} MB")
        seconds = openings(report)
    print(f"opened in {statistics.median(seconds):.2f} s (of {OPENINGS}: {min(seconds):.2f} to {max(seconds):.2f})")


def write_run(folder: Path, items: int, words: int, arms: list[str]) -> None:
    numbers = random.Random(0)
    vocabulary = ["".join(numbers.choices("abcdefghijklmnopqrstuvwxyz", k=numbers.randint(2, 9))) for _ in range(5000)]

    def text() -> str:
        return " ".join(numbers.choices(vocabulary, k=words))

    def said() -> dict[str, Any]:
        return {"output": text(), "answer": "7", "exact_match": float(numbers.random() < 0.5), "weights": None}

    (folder / "items").mkdir()
    with (folder / "items" / "words.jsonl").open("w", encoding="utf-8") as file:
        for item in range(items):
            row = {"doc_id": item, "prompt": text(), "choices": None, "target": text(), "truncated_tokens": 0}
            file.write(json.dumps(row | {"arms": {arm: said() for arm in arms}}) + "\n")
    scores = {arm: {"value": 0.5, "stderr": 0.005, "n": items} for arm in arms}
    task = {"metric": "exact_match", "higher_is_better": True, "n": items, "arms": scores}
    (folder / "results.json").write_text(json.dumps({"tasks": {"words": task}}), encoding="utf-8")


def openings(report: Path) -> list[float]:
    """Seconds until the list and the first item are shown, each in a new page."""
    seconds = []
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for _ in range(OPENINGS):
            page = browser.new_page()
            start = time.perf_counter()
            page.goto(report.as_uri())
            page.wait_for_selector("#samples[data-ready]")
            seconds.append(time.perf_counter() - start)
            page.close()
        browser.close()
    return seconds


if __name__ == "__main__":
    main()
