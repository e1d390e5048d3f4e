"""Every experiment of the papers runs from its config to its table, offline, on stand-ins under the real names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from api_server import KEY, Served, serving
from standins import ROOT, fill_standins, use, write_data
from transformers import LlamaConfig, LlamaForSequenceClassification

from proxytune.cli import main
from proxytune.execution.sandbox import _fault
from proxytune.reporting.papers import PAPERS, paper_tables

EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*202[45]_*.yaml"))


@pytest.fixture(scope="module")
def standins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("standins")
    kinds = ("meta-llama/Llama-2", "TinyLlama", "codellama", "Qwen/Qwen2.5", "hkust-nlp")
    names = [name for name in fill_standins.REPOSITORIES if name.startswith(kinds) and "-Instruct" not in name]
    fill_standins.fill(folder, names)
    fill_standins.fill_trained(folder / "trained")
    write_data(folder / "data")
    _write_classifier(folder / "classifier")
    return folder


def _write_classifier(folder: Path) -> None:
    """A stand-in of ToxiGen's: two labels without names."""
    tokenizer = fill_standins.tokenizer_of(fill_standins.LLAMA2, False)
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=32_000, num_labels=2, pad_token_id=0, **sizes)
    LlamaForSequenceClassification(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def address(standins: Path) -> Iterator[str]:
    """Of an endpoint that stands in for GPT-3.5, whose likeliest token is always a letter, or for a judge of pairs."""
    served = Served(None, None)
    served.top = lambda tokens, k, by_id: [(token, -1.0 - n) for n, token in enumerate(("A", "The", "C", " D", "x"))][
        :k
    ]
    served.tokenizer = lambda text: {"input_ids": text.split()}  # type: ignore[assignment]
    answer = served.answer

    def compare(path: str, body: dict) -> dict:
        asked = body.get("messages", [{}])[-1].get("content", "")
        served.replies = (lambda _: "1") if asked.endswith("The better answer:") else None
        return answer(path, body)

    served.answer = compare  # type: ignore[method-assign]
    with serving(served) as running:
        yield running.url


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_runs_from_config_to_table(
    experiment: str,
    standins: Path,
    address: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    use(monkeypatch, standins)
    monkeypatch.chdir(tmp_path)
    if "_code_" in experiment and _fault("bubblewrap") is not None:
        pytest.skip(f"no isolation: {_fault('bubblewrap')}")
    monkeypatch.setenv("PROXYTUNE_API_KEY", KEY)
    shortened = ["limit=4", f"task.data_dir={standins / 'data'}", "output=run"]
    shortened += [f"models.base.api={address}"] if "blackbox" in experiment else []
    if "toxigen" in experiment or "frontier" in experiment:
        shortened.append(f"task.classifier={standins / 'classifier'}")
    if "truthfulqa_open" in experiment:
        shortened += [f"task.judge_{name}={standins / 'classifier'}" for name in ("true", "informative")]
    if "alpacafarm" in experiment:
        shortened += ["task.judge=tiny", f"task.judge_api={address}"]
    assert main(["run", f"experiment={experiment}", *shortened]) == 0, capsys.readouterr().err

    record = json.loads((tmp_path / "run" / "results.json").read_text())
    assert record["provenance"]["config"]["experiment"] == experiment
    sources = [member["source"] for member in record["provenance"]["members"].values()]
    assert all("/" in source.get("path", source.get("api")) for source in sources)
    for task, entry in record["tasks"].items():
        assert entry["n"] == 4 and not entry["missing"], task
        # Stand-ins answer noise: all that is known is that every arm has answered.
        assert all(arm["n"] + arm["n_invalid"] == 4 for arm in entry["arms"].values()), task

    paper = experiment.partition("_")[0]
    capsys.readouterr()
    assert main(["table", f"paper={paper}", "runs=run"]) == 0
    assert "ours" in capsys.readouterr().out
    _every_arm_has_its_cell(paper, experiment, record)


def _every_arm_has_its_cell(paper: str, experiment: str, record: dict) -> None:
    """Each measured value stands in the paper's table, and the paper's rows of this experiment are filled."""
    tables = [t for t in paper_tables(paper, ["run"]) if experiment in t.layout.experiments]
    assert tables
    for table in tables:
        assert set(table.differences) == {"limit=4, not null"}
        cells = table.figures.set_index(["panel", "arm", "task"])
        columns = {task: column for column, task in table.layout.runs.items()}
        for task, entry in record["tasks"].items():
            for arm, answer in entry["arms"].items():
                if task in columns and answer["value"] is not None:
                    place = (table.layout.panel(experiment, arm), arm, columns[task])
                    assert cells["ours"][place] == pytest.approx(100 * answer["value"])
    arms = {arm for entry in record["tasks"].values() for arm in entry["arms"]}
    for table in tables:
        panels = {table.layout.panel(experiment, arm) for arm in arms}
        wanted = {arm for panel, arm in table.layout.rows if panel in panels} - {"tuned_lora"}
        assert wanted <= arms, f"{table.layout.id}: the experiment has no arm for {wanted - arms}"


def test_every_table_has_an_experiment_that_runs():
    layouts = [layout for paper in PAPERS.values() for layout in paper.tables if layout.experiments]
    assert all(set(EXPERIMENTS) & set(layout.experiments) for layout in layouts if "published" not in layout.id)
