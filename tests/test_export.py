"""`proxytune export`: each format is read by the tool that it is for, and says what the run's own files say."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from proxytune.cli import main
from proxytune.record import read_record

RUN = ("run", "miniature=tiny", "task.names=[miniature_tqa,miniature_gsm]", "limit=3", "only=[base,proxy]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two runs, of choices and of generated answers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("export"))
        sweep = [*RUN, "-m", "arms.proxy.rule.weights=0.5,1.5", "report=false", "output=sweep"]
        assert main(sweep) == 0
        return Path("sweep").absolute()


def rows(run: Path, task: str) -> list[dict]:
    return [json.loads(line) for line in (run / "items" / f"{task}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_items_are_a_tidy_frame(kind: str, folder: Path, tmp_path: Path, capsys):
    path = tmp_path / f"new/items.{kind}"
    assert main(["export", str(folder), f"format={kind}", f"output={path}"]) == 0
    assert capsys.readouterr().out == f"Exported: {path} (1 file)\n"
    items = pd.read_csv(path, keep_default_na=False, na_values=[""]) if kind == "csv" else pd.read_parquet(path)
    assert len(items) == 2 * 2 * 2 * 3
    means = items.groupby(["run", "task", "arm"])["score"].mean()
    for job in "01":
        for name, task in read_record(folder / job).tasks.items():
            for arm, entry in task.arms.items():
                assert means[str(folder / job), name, arm] == pytest.approx(entry.value)
    proxy = items[items["arm"] == "proxy"]
    assert (proxy["alpha"] == proxy["arms.proxy.rule.weights"].astype(float)).all()
    assert items.loc[items["arm"] == "base", "alpha"].isna().all()
    first = rows(folder / "0", "miniature_gsm")[0]
    shown = items[(items["run"] == str(folder / "0")) & (items["task"] == "miniature_gsm") & (items["arm"] == "base")]
    assert shown.iloc[0]["prompt"] == first["prompt"] and shown.iloc[0]["output"] == first["arms"]["base"]["output"]


def test_inspects_own_reader_opens_the_logs(folder: Path, tmp_path: Path):
    log = pytest.importorskip("inspect_ai.log", reason="inspect_ai is missing: pip install inspect-ai")
    assert main(["export", str(folder / "1"), "format=inspect", f"output={tmp_path}"]) == 0
    logs = {
        (read.eval.task, read.eval.model): read
        for info in log.list_eval_logs(str(tmp_path))
        for read in [log.read_eval_log(info)]
    }
    assert len(logs) == len(list(tmp_path.iterdir())) == 4
    record = read_record(folder / "1")
    for (task, model), read in logs.items():
        arm = record.tasks[task].arms[model.removeprefix("proxytune/")]
        (score,) = read.results.scores
        assert score.metrics["mean"].value == arm.value and score.metrics["stderr"].value == arm.stderr
        assert read.eval.task_args["arms.proxy.rule.weights"] == "1.5"
        assert read.status == "success" and len(read.samples) == read.results.total_samples == 3
        for sample, row in zip(read.samples, rows(folder / "1", task), strict=True):
            said = row["arms"][model.removeprefix("proxytune/")]
            assert (sample.input, sample.id) == (row["prompt"], row["doc_id"])
            assert sample.scores[score.name].value == said[score.name]
            if row["choices"] is None:
                assert sample.output.completion == said["output"]
            else:
                assert sample.target == row["choices"][row["target"]]
                assert sample.output.completion == row["choices"][said["output"].index(max(said["output"]))]
    frame = pytest.importorskip("inspect_ai.analysis").samples_df(str(tmp_path))
    assert len(frame) == 12


def test_every_eval_evers_own_validator_accepts_the_records(folder: Path, tmp_path: Path):
    if importlib.util.find_spec("every_eval_ever") is None:
        pytest.skip("every_eval_ever is missing (it needs Python 3.12): pip install every-eval-ever")
    assert main(["export", str(folder), "format=every_eval_ever", f"output={tmp_path}"]) == 0
    command = [sys.executable, "-m", "every_eval_ever", "validate", "--format", "json"]
    files = [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*.json*"))]
    assert len(files) == 2 * 2 * 2 * 2
    done = subprocess.run([*command, *files], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    found = json.loads(done.stdout)
    assert all(one["valid"] and not one["warnings"] for one in found) and len(found) == len(files)
    damaged = next(tmp_path.rglob("*.json"))
    damaged.write_text(damaged.read_text().replace('"score"', '"scores"'))
    assert subprocess.run([*command, str(damaged)], cwd=tmp_path, capture_output=True).returncode != 0


def test_records_of_every_eval_ever_have_the_scores_of_the_run(folder: Path, tmp_path: Path):
    assert main(["export", str(folder / "0"), "format=every_eval_ever", f"output={tmp_path}"]) == 0
    record = read_record(folder / "0")
    files = [json.loads(path.read_text()) for path in tmp_path.rglob("*.json")]
    found = {(one["evaluation_results"][0]["evaluation_name"], one["model_info"]["id"]): one for one in files}
    assert len(found) == 4
    for (task, model), one in found.items():
        arm = record.tasks[task].arms[model.removeprefix("proxytune/base-")]
        assert one["evaluation_results"][0]["score_details"]["score"] == arm.value
        samples = (tmp_path / one["detailed_evaluation_results"]["file_path"]).read_text().splitlines()
        scores = [json.loads(sample)["evaluation"]["score"] for sample in samples]
        assert sum(scores) / len(scores) == pytest.approx(arm.value)


def test_an_arm_without_a_score_is_left_out_of_every_eval_ever_and_said(folder: Path, tmp_path: Path, capsys):
    run = tmp_path / "run"
    shutil.copytree(folder / "0", run)
    record = json.loads((run / "results.json").read_text())
    record["tasks"]["miniature_gsm"]["arms"]["proxy"] |= {"value": None, "undefined": {"value": "nothing was judged"}}
    (run / "results.json").write_text(json.dumps(record))
    items = rows(run, "miniature_gsm")
    for row in items:
        row["arms"]["proxy"] |= {"exact_match": None, "output": None, "answer": None, "error": "ValueError: no"}
    (run / "items" / "miniature_gsm.jsonl").write_text("".join(json.dumps(row) + "\n" for row in items))
    capsys.readouterr()
    assert main(["export", str(run), "format=every_eval_ever"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"Exported: {run}/every_eval_ever (6 files)",
        f"Left out: {run}: proxy on miniature_gsm, which has no score (nothing was judged)",
    ]
    assert main(["export", str(run), "format=inspect"]) == 0
    (log,) = [json.loads(path.read_text()) for path in (run / "inspect").glob("*gsm-proxy*")]
    assert [sample["error"]["message"] for sample in log["samples"]] == ["ValueError: no"] * 3
    assert log["samples"][0]["scores"] == {} and log["results"]["scores"][0]["metrics"].keys() <= {"stderr"}


def test_exporting_again_writes_the_same_files(folder: Path, tmp_path: Path):
    for kind in ("inspect", "every_eval_ever", "csv"):
        files = []
        for _ in range(2):
            assert main(["export", str(folder), f"format={kind}", f"output={tmp_path / kind}"]) == 0
            written = [path for path in sorted(tmp_path.rglob("*")) if path.is_file()]
            files.append({path: path.read_bytes() for path in written})
        assert files[0] == files[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{run}"], "format=... is missing: inspect, every_eval_ever, csv, parquet"),
        (["{run}", "format=inspct"], "unknown format 'inspct'. Did you mean 'inspect'?"),
        (["format=csv"], "proxytune export: no run is given; give the folders of one or several runs"),
        (["nowhere", "format=csv"], "nowhere is not a run: give the folder of a run or of a sweep, or a results.json"),
        (["{cut}", "format=csv"], "cut/0 cannot be exported: The items of miniature_gsm are missing: there is no "),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], said: str, folder: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, "cut")
    Path("cut/0/items/miniature_gsm.jsonl").unlink()
    assert main(["export", *(one.format(run=folder, cut="cut") for one in arguments)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"proxytune: {said}") and error.count("\n") == 1
