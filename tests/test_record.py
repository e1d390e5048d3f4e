"""The results record: what is written is read again, older files are read, and whatever else is refused in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from proxytune.atomic import write_json
from proxytune.errors import UserError
from proxytune.record import ArmRecord, Record, TaskRecord, read_record


def minimal() -> dict[str, Any]:
    """As few fields as a file may have."""
    arms = {"base": {"value": 0.5}}
    return {"tasks": {"open": {"metric": "acc", "higher_is_better": True, "n": 4, "arms": arms}}}


def saved(folder: Path, record: Any) -> Path:
    (folder / "results.json").write_text(record if isinstance(record, str) else json.dumps(record))
    return folder


def test_a_record_is_the_same_after_writing_and_reading(tmp_path):
    arm = ArmRecord(value=0.5, stderr=None, n=4, gap_closed=0.25, gap_closed_ci=(0.0, 0.5), weights={})
    task = TaskRecord(metric="acc", higher_is_better=True, n=4, references={"base": "base"}, arms={"base": arm})
    record = Record(tasks={"open": task}, failed={"other": {"base": "ValueError: no"}})
    write_json(tmp_path / "results.json", record.model_dump())
    assert read_record(tmp_path) == read_record(tmp_path / "results.json") == record
    assert json.loads((tmp_path / "results.json").read_text())["format"] == 1


def test_a_file_of_an_older_version_is_read_and_what_a_newer_one_added_is_passed_over(tmp_path):
    old = read_record(saved(tmp_path, minimal()))
    assert (old.format, old.tasks["open"].arms["base"].gap_closed, old.failed) == (1, None, {})
    assert old.provenance.config is None
    newer = minimal() | {"format": 1, "added": 7}
    newer["tasks"]["open"]["arms"]["base"]["added"] = [1]
    assert read_record(saved(tmp_path, newer)) == old


def changed(*path: str, to: Any) -> dict[str, Any]:
    record: Any = minimal()
    *parents, last = path
    inside = record
    for key in parents:
        inside = inside[key]
    inside[last] = to
    return record


ARM = ("tasks", "open", "arms", "base")
FAULTS: dict[str, tuple[Any, str]] = {
    "empty": ("", "Invalid JSON"),
    "cut off": ('{"tasks": {', "Invalid JSON"),
    "a list": ([1], "Input should be an object"),
    "no tasks": ({}, "tasks: Field required"),
    "another format": ({"format": 2, "tasks": 7}, "format: 2 is not a format that this version of proxytune reads"),
    "a text for a number": (
        changed(*ARM, "value", to="0.5"),
        "tasks.open.arms.base.value: Input should be a valid number",
    ),
    "NaN": (changed(*ARM, "value", to=float("nan")), "value: Input should be a finite number"),
    "infinity": (changed(*ARM, "stderr", to=float("inf")), "stderr: Input should be a finite number"),
    "half an interval": (changed(*ARM, "gap_closed_ci", to=[0.1]), "gap_closed_ci.1: Field required"),
    "no such arm": (changed("tasks", "open", "references", to={"tuned": "tuned"}), "references.tuned is 'tuned'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_is_no_record_is_refused_in_one_line(fault, tmp_path):
    content, said = FAULTS[fault]
    with pytest.raises(UserError) as error:
        read_record(saved(tmp_path, content))
    assert str(error.value).startswith(f"{tmp_path / 'results.json'} is not a results.json of proxytune run: ")
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_not_there_or_not_a_text_is_refused(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist: give the folder of a finished run"):
        read_record(tmp_path / "nowhere")
    (tmp_path / "results.json").mkdir()
    with pytest.raises(UserError, match="cannot read"):
        read_record(tmp_path)
    (tmp_path / "other.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="Invalid JSON"):
        read_record(tmp_path / "other.json")


def test_a_number_that_is_not_finite_cannot_be_recorded():
    with pytest.raises(ValidationError):
        ArmRecord(value=float("nan"))


def test_reading_records_needs_neither_models_nor_lm_eval():
    heavy = "{'torch', 'transformers', 'lm_eval', 'proxytune.experiment', 'proxytune.models'}"
    code = f"import sys, proxytune.record, proxytune.reporting.papers; print({heavy} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
