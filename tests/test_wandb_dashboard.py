"""The report that scripts/wandb_dashboard.py builds, as it would be sent to the server."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from proxytune.record import ArmRecord, Provenance, Record, RuleRecord, TaskRecord

interface = pytest.importorskip(
    "wandb_workspaces.reports.v2.interface", reason="the package wandb-workspaces is not installed"
)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "scripts")
    import wandb_dashboard

    yield wandb_dashboard
    del sys.modules["wandb_dashboard"]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the server was asked to save; it has the project and takes everything."""
    saved: list[dict[str, Any]] = []

    def answer(api: object, query: object, variables: dict[str, Any]) -> dict[str, Any]:
        if "spec" not in variables:
            return {"project": {"internalId": "1"}}
        saved.append(variables)
        project = {"name": variables["projectName"], "entityName": variables["entityName"]}
        view = {"id": "7", "name": variables["name"], "displayName": variables["displayName"], "description": ""}
        return {"upsertView": {"view": {**view, "project": project, "spec": variables["spec"]}}}

    api = SimpleNamespace(projects=lambda entity: [SimpleNamespace(name="proxytune")])
    monkeypatch.setattr(interface, "_get_api", lambda: api)
    monkeypatch.setattr(interface, "execute_graphql", answer)
    monkeypatch.setattr(interface.Report, "url", "https://server/report")
    return saved


def record(weight: float) -> Record:
    fused = ArmRecord(value=0.5, rule=RuleRecord(id="static"))
    arms = {"base": ArmRecord(value=0.25), "tuned": ArmRecord(value=0.75), "proxy": fused}
    config = {"arms": {"proxy": {"rule": {"weights": weight}}}, "seed": 0, "output": f"sweep/{weight}"}
    tasks = {name: TaskRecord(metric="acc", higher_is_better=True, n=4, arms=arms) for name in ("gsm", "tqa")}
    return Record(tasks=tasks, provenance=Provenance(config=config))


def panels(spec: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Kind of view -> the configurations of its panels."""
    found: dict[str, list[dict[str, Any]]] = {}
    for block in spec["blocks"]:
        for panel in block.get("metadata", {}).get("panelBankSectionConfig", {}).get("panels", []):
            found.setdefault(panel["viewType"], []).append(panel["config"])
    return found


def test_the_report_compares_the_runs_of_a_sweep(script, sent):
    report = script.dashboard([record(0.5), record(1.0)], "me", "proxytune", "sweep")
    report.save()
    [variables] = sent
    assert (variables["entityName"], variables["projectName"]) == ("me", "proxytune")
    spec = json.loads(variables["spec"])
    shown = panels(spec)
    weight = "config:arms.value.proxy.rule.weights"
    assert {(one["xAxis"], one["yAxis"]) for one in shown["Scatter Plot"]} == {
        (weight, "summary:gsm/proxy/acc"),
        (weight, "summary:tqa/proxy/acc"),
    }
    assert [one["metrics"] for one in shown["Bar Chart"]] == [
        [f"summary_metrics.{task}/proxy/gap_closed"] for task in ("gsm", "tqa")
    ]
    [parallel] = shown["Parallel Coordinates Plot"]
    assert [column["accessor"] for column in parallel["columns"]] == [
        weight,
        *(f"summary:{task}/proxy/gap_closed" for task in ("gsm", "tqa")),
    ]
    assert '"results"' in json.dumps(shown["Weave"])
    assert '"sweep"' in variables["spec"], "only the runs of the group"


def test_the_report_is_one_that_the_library_reads_back(script, sent):
    report = script.dashboard([record(0.5)], "me", "proxytune")
    again = interface.Report._from_model(report._to_model())
    assert [type(block) for block in again.blocks] == [type(block) for block in report.blocks]
    kinds = {type(panel).__name__ for block in report.blocks for panel in getattr(block, "panels", [])}
    assert kinds == {"BarPlot", "WeavePanelSummaryTable", "RunComparer"}, "one run has no swept keys"
