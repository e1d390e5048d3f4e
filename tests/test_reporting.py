"""The reports of a run, from records made by hand."""

from __future__ import annotations

import json
import re
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from proxytune.record import ArmRecord, Record, TaskRecord
from proxytune.reporting import Tables, columns, files, show, tables, tabulate, tidy, write
from proxytune.reporting.columns import Cell, Column, Notes
from proxytune.reporting.files import markdown

NO_GAP = "tuned − base = 0.02 ± 0.03: inside noise (less than 2 standard errors)"
STATIC = {"id": "static", "formula": "", "paper": "", "parameters": {"weights": 1.0}}


def entry(value: float | None, gap: float | None = None, why: str = NO_GAP, **fields: Any) -> dict[str, Any]:
    """One arm's results on one task; without a gap, for the reason `why`."""
    undefined = {} if gap is not None else {"gap_closed": why, "gap_closed_ci": why}
    return {
        "value": value,
        "stderr": None if value is None else 0.0203,
        "stderr_method": None if value is None else "sample",
        "interval": None if value is None or value > 1 else [round(value - 0.06, 4), round(value + 0.06, 4)],
        "n": 200,
        "n_invalid": 0,
        "gap_closed": gap,
        "gap_closed_ci": None if gap is None else [gap - 0.05, gap + 0.05],
        "relative_performance": None,
        "undefined": undefined,
        "metrics": {},
        "rule": None,
        "weights": {},
        **fields,
    }


def task(arms: dict[str, Any], metric: str = "exact_match", **fields: Any) -> dict[str, Any]:
    defaults = {"higher_is_better": True, "n": 200, "n_truncated": 0, "missing": {}}
    return {"metric": metric, "arms": arms, **defaults, **fields}


def fused(value: float | None, gap: float | None = None, **fields: Any) -> dict[str, Any]:
    return entry(value, gap, rule=STATIC, weights={"gsm8k": {"mean": 1.0, "sd": 0.25}}, **fields)


@pytest.fixture
def record() -> dict[str, Any]:
    """gsm8k has a gap, mmlu has none, and perplexity is lower where it is better."""
    gsm8k = {
        "base": entry(0.10, 0.0),
        "tuned": entry(0.50, 1.0),
        "proxy": fused(0.42, 0.8),
        "dynamic": fused(0.4, 0.75),
    }
    mmlu = {"base": entry(0.30), "tuned": entry(0.32), "proxy": fused(0.34), "dynamic": fused(0.31, n_invalid=4)}
    text = {"base": entry(9.0, 0.0), "tuned": entry(5.0, 1.0), "proxy": fused(6.0, 0.75), "dynamic": fused(5.5, 0.875)}
    absent = {"tuned_multitask": "the family has no tuned:multitask"}
    tasks = {
        "gsm8k": task(gsm8k, missing=absent),
        "mmlu": task(mmlu, "acc", missing=absent, n_truncated=2),
        "text": task(text, "perplexity", higher_is_better=False, missing=absent),
    }
    return {"tasks": tasks, "provenance": {}}


def read(record: dict[str, Any]) -> Record:
    """As from a file."""
    return Record.model_validate_json(json.dumps(record))


def reported(record: dict[str, Any]) -> Tables:
    return tabulate(read(record))


def printed(record: dict[str, Any], width: int = 200) -> str:
    console = Console(width=width, file=StringIO(), color_system=None)
    show(read(record), console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_scores_are_percent_points_except_where_the_metric_is_no_fraction(record):
    scores = reported(record).tables[0]
    assert [cell.text for cell in scores.rows["proxy"]] == ["42.0 ± 2.0", "34.0 ± 2.0", "6.000 ± 0.020", "38.0¹"]
    assert scores.headings[0] == "gsm8k\nexact_match %\nn = 200"
    assert scores.headings[2] == "text\nperplexity, lower is better\nn = 200"


def test_the_mean_leaves_out_what_has_another_scale_and_says_so(record):
    made = reported(record)
    assert made.notes[0] == "mean of 2 of 3 tasks"
    del record["tasks"]["text"]
    assert reported(record).tables[0].rows["proxy"][-1].text == "38.0"


def test_a_gap_has_its_interval_and_an_undefined_one_a_note(record):
    made = reported(record)
    gsm8k, mmlu, *_ = made.tables[1].rows["proxy"]
    assert gsm8k.text == "80.0 [75.0, 85.0]"
    assert mmlu.text == "–²"
    assert made.notes[1] == NO_GAP


def test_the_best_fused_arm_is_marked_and_no_model_alone(record):
    best = {arm: [cell.best for cell in row[:3]] for arm, row in reported(record).tables[0].rows.items()}
    assert best == {
        "base": [False] * 3,
        "tuned": [False] * 3,
        "proxy": [True, True, False],
        "dynamic": [False, False, True],
    }
    assert not reported(record).tables[1].rows["proxy"][1].best


def test_equal_best_arms_are_all_marked(record):
    record["tasks"]["gsm8k"]["arms"]["dynamic"] = fused(0.42, 0.8)
    assert [reported(record).tables[0].rows[arm][0].best for arm in ("proxy", "dynamic")] == [True, True]


def test_an_arm_without_a_value_is_shown_with_the_reason(record):
    why = "none of its answers could be judged"
    record["tasks"]["gsm8k"]["arms"]["dynamic"] = fused(None, why=why) | {
        "undefined": {"value": why, "gap_closed": why}
    }
    made = reported(record)
    assert re.fullmatch("–[⁰¹²³⁴⁵⁶⁷⁸⁹]", made.tables[0].rows["dynamic"][0].text)
    assert why in made.notes


def test_rows_stand_in_the_order_of_their_kinds(record):
    arms = record["tasks"]["gsm8k"]["arms"]
    roles = {"base": "base", "tuned": "tuned:gsm8k", "small": "antiexpert", "expert": "expert:gsm8k"}
    arms |= {"small": entry(0.1), "expert": entry(0.2)}
    for name, role in roles.items():
        for one in record["tasks"].values():
            one["arms"].get(name, {})["roles"] = [role]
    record["tasks"]["gsm8k"]["arms"] = dict(reversed(arms.items()))
    rows = list(reported(record).tables[0].rows)
    assert rows == ["base", "small", "expert", "tuned", "dynamic", "proxy"]


def test_what_all_task_names_begin_with_stands_in_the_title(record):
    record["tasks"] = {f"mini_{name}": one for name, one in record["tasks"].items()}
    made = reported(record).tables[0]
    assert made.title == "Score ± standard error; tasks: mini_…"
    assert [heading.partition("\n")[0] for heading in made.headings] == ["gsm8k", "mmlu", "text", "mean"]
    record["tasks"] = {"mini_gsm8k": record["tasks"]["mini_gsm8k"]}
    assert reported(record).tables[0].headings[0].startswith("mini_gsm8k\n")


def test_the_verdict_names_the_arm_that_closes_most_of_the_gap(record):
    share = "the largest share of the gap: 81.2 % (mean of 2 tasks)"
    assert reported(record).verdict == f"Of 2 fused arms, dynamic closes {share}."
    record["tasks"]["text"]["arms"]["dynamic"] = fused(5.5)
    assert reported(record).verdict == "proxy closes 77.5 % of the gap (mean of 2 tasks)."
    assert printed(record).rstrip().endswith("proxy closes 77.5 % of the gap (mean of 2 tasks).")
    record["tasks"]["text"]["arms"]["dynamic"] = fused(5.5, 0.8)
    assert "proxy and dynamic close the largest share of the gap: 77.5 %" in reported(record).verdict
    del record["tasks"]["gsm8k"], record["tasks"]["text"]
    assert reported(record).verdict == ""


def difference(value: float, stderr: float) -> dict[str, Any]:
    return {"differences": {"base": {"value": value, "stderr": stderr, "stderr_method": "sample", "n": 200}}}


def test_fused_arms_that_do_harm_are_named(record):
    """Below the base by more than 1.96 standard errors; above it where lower is better. No model alone."""
    arms = {name: record["tasks"][name]["arms"] for name in ("gsm8k", "mmlu", "text")}
    arms["gsm8k"]["proxy"] |= difference(-0.0393, 0.02)
    arms["gsm8k"]["dynamic"] |= difference(-0.0391, 0.02)
    arms["gsm8k"]["tuned"] |= difference(-0.3, 0.02)
    arms["mmlu"]["proxy"] |= difference(0.3, 0.02)
    arms["text"]["proxy"] |= difference(0.25, 0.1)
    arms["text"]["dynamic"] |= difference(-0.25, 0.1)
    said = [remark for remark in reported(record).remarks if "worse" in remark]
    end = "significantly worse than the base (difference ± standard error)"
    assert said == [f"gsm8k: {end}: proxy -3.9 ± 2.0.", f"text: {end}: proxy +0.250 ± 0.100."]


def test_a_table_without_a_number_is_a_remark(record):
    del record["tasks"]["gsm8k"], record["tasks"]["text"]
    made = reported(record)
    assert [table.title for table in made.tables] == [columns.COLUMNS[0].title, columns.COLUMNS[-2].title]
    assert f"Gap closed, % [95 % interval] is undefined everywhere: {NO_GAP}." in made.remarks
    assert NO_GAP not in made.notes


def test_what_is_absent_or_left_out_is_said(record):
    remarks = reported(record).remarks
    assert "No arm tuned_multitask: the family has no tuned:multitask." in remarks
    assert "mmlu: answers that could not be judged and are left out of the score: dynamic 4." in remarks
    assert "mmlu: 2 prompts were cut to the smallest window." in remarks


def test_a_limit_over_groups_is_said_and_one_without_is_not(record):
    limited = {"skipped": {"beyond the limit": 9}}
    record["tasks"]["gsm8k"]["data"] = limited
    record["tasks"]["mmlu"]["data"] = limited | {"groups": {"law": 199, "art": 1, "music": 0}}
    record["tasks"]["text"]["data"] = {"skipped": {}, "groups": {"prose": 200}}
    said = [remark for remark in reported(record).remarks if "spread" in remark]
    assert said == [
        "mmlu: 200 of 209 items, spread over the groups in proportion to their sizes: 2 of 3 groups have any."
    ]


def test_an_arm_that_one_task_lacks_has_a_mark_there(record):
    del record["tasks"]["mmlu"]["arms"]["tuned"]
    record["tasks"]["mmlu"]["missing"]["tuned"] = "the family has no tuned model for task 'mmlu'"
    made = reported(record)
    assert made.tables[0].rows["tuned"][1].text.startswith("·")
    assert "the family has no tuned model for task 'mmlu'" in made.notes


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_the_terminal_shows_every_number_and_note_at_any_width(record, width):
    text = printed(record, width)
    assert max(map(len, text.splitlines())) <= width
    flat = re.sub(r"\s+", " ", text)
    made = reported(record)
    for table in made.tables[:2]:
        for row in table.rows.values():
            assert all(cell.text in flat for cell in row)
    assert all(note in flat for note in (*made.notes, *made.remarks))


def test_a_narrow_terminal_splits_the_table_and_repeats_the_arms(record):
    assert (
        printed(record, 200).count("dynamic ") == 2 + 1 + 1
    )  # scores, gaps, the remark on invalid answers, the verdict
    assert printed(record, 45).count("dynamic ") > 4


def test_seventeen_arms_on_five_tasks_fit_into_a_hundred_columns():
    arms = [*(f"arm_{i}" for i in range(15)), "expert_multitask", "tuned_multitask"]
    names = [f"miniature_{name}" for name in ("gsm", "trivia", "tqa", "mmlu", "cnn")]
    tasks = {name: task({arm: fused(0.42, 0.8) for arm in arms}) for name in names}
    text = printed({"tasks": tasks, "failed": {}, "provenance": {}}, width=100)
    assert all(len(line) <= 100 for line in text.splitlines())
    for arm in arms:
        rows = [line.split() for line in text.splitlines() if line.split()[:1] == [arm]]
        assert sum(row.count("42.0") for row in rows) == 5 + 1, "a score on each task, and their mean"


def test_markdown_has_one_row_per_arm_and_the_same_numbers(record):
    text = markdown(read(record))
    assert "| proxy | **42.0 ± 2.0** | **34.0 ± 2.0** | 6.000 ± 0.020 | 38.0¹ |" in text
    assert "| dynamic | 1.00 ± 0.25 | 1.00 ± 0.25 | 1.00 ± 0.25 |" in text
    assert f"2. {NO_GAP}" in text


def test_the_tidy_table_has_a_row_per_task_arm_and_metric(record):
    record["tasks"]["mmlu"]["arms"]["base"]["metrics"] = {"acc": 0.30, "acc_norm": 0.25}
    table = tidy(read(record))
    assert len(table) == 3 * 4 + 1
    proxy = table[(table.task == "gsm8k") & (table.arm == "proxy")].iloc[0]
    assert (proxy.value, proxy.stderr, proxy.rule) == (0.42, 0.0203, "static")
    assert (proxy.stderr_method, proxy.value_low, proxy.value_high) == ("sample", 0.36, 0.48)
    assert (proxy.gap_closed, proxy.gap_closed_low, proxy.gap_closed_high) == (0.8, 0.75, pytest.approx(0.85))
    other = table[~table.headline].iloc[0]
    assert (other.metric, other.value) == ("acc_norm", 0.25)
    assert table[(table.task == "mmlu") & table.headline].undefined.str.contains("inside noise").all()


def test_the_files_hold_full_digits(record, tmp_path: Path):
    record["tasks"]["gsm8k"]["arms"]["proxy"]["value"] = 0.26383623957543
    write(read(record), tmp_path)
    table = pd.read_csv(tmp_path / "results.csv", float_precision="round_trip")
    assert table[(table.task == "gsm8k") & (table.arm == "proxy")].value.item() == 0.26383623957543
    assert "| 26.4 ± 2.0 " in (tmp_path / "table.md").read_text(encoding="utf-8").replace("**", "")


def test_a_record_without_tasks_is_no_error(tmp_path: Path):
    write(read({"tasks": {}}), tmp_path)
    assert "Score" in printed({"tasks": {}})


def test_a_sample_without_variation_and_grouped_items_are_said(record):
    record["tasks"]["gsm8k"] |= {"grouped_by": "subject", "n_groups": 7}
    record["tasks"]["gsm8k"]["arms"]["proxy"] |= {"stderr_method": "wilson", "gap_closed_ci_method": "agresti-min"}
    made = reported(record)
    mark = columns.superscript(made.notes.index(columns.NO_VARIATION) + 1)
    assert made.tables[0].rows["proxy"][0].text == f"42.0 ± 2.0{mark}"
    assert made.tables[1].rows["proxy"][0].text == f"80.0 [75.0, 85.0]{mark}"
    assert mark not in made.tables[0].rows["dynamic"][0].text
    assert "gsm8k: errors and intervals are clustered by subject (7 groups)." in made.remarks


def test_weights_that_are_undefined_are_shown_with_the_reason(record, tmp_path: Path):
    why = "no finite weights"
    record["tasks"]["gsm8k"]["arms"]["proxy"] |= {
        "weights": {"gsm8k": {"mean": None, "sd": None}},
        "undefined": {"weights": why},
    }
    made = reported(record)
    assert re.fullmatch("–[⁰¹²³⁴⁵⁶⁷⁸⁹]", made.tables[2].rows["proxy"][0].text)
    assert why in made.notes
    assert why in markdown(read(record)) and why not in printed(record)


def test_a_column_is_declared_once_for_the_terminal_markdown_and_csv(record, monkeypatch):
    def cell(task: TaskRecord, arm: ArmRecord, notes: Notes) -> Cell:
        return Cell(f"{arm.n_invalid} invalid")

    added = Column({"invalid_again": lambda arm: arm.n_invalid}, "Invalid answers", "n_invalid", cell)
    monkeypatch.setattr(tables, "COLUMNS", (*columns.COLUMNS, added))
    monkeypatch.setattr(files, "COLUMNS", (*columns.COLUMNS, added))
    assert "Invalid answers" in printed(record) and "4 invalid" in printed(record)
    assert "| dynamic | 0 invalid | 4 invalid | 0 invalid |" in markdown(read(record)).replace("**", "")
    assert tidy(read(record)).invalid_again.sum() == 4
