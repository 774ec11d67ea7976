"""Alerts and dashboards: they ask for what there is, and each alert fires when it should."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

from tests.monitoring import (
    KUBELET,
    RAY,
    TARGET,
    TRITON,
    TRITON_GPU,
    Query,
    alerts,
    dashboards,
    own_metrics,
    queries,
    rules,
)

ROOT = Path(__file__).parents[2]
TESTS = Path(__file__).with_name("alerts.yaml")


def test_each_alert_fires_when_it_should_and_only_then(tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("no promtool here (apt-get install prometheus): the alert rules are not tested")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules()["spec"]))
    shutil.copy(TESTS, tmp_path)
    for command in (["check", "rules", "rules.yaml"], ["test", "rules", TESTS.name]):
        done = subprocess.run(
            ["promtool", *command], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_tested_both_ways_and_has_a_page_that_says_what_to_do() -> None:
    checks = [c for t in yaml.safe_load(TESTS.read_text())["tests"] for c in t["alert_rule_test"]]
    names = [alert["alert"] for alert in alerts()]
    assert len(set(names)) == len(names)
    assert {c["alertname"] for c in checks if c["exp_alerts"]} == set(names)
    assert {c["alertname"] for c in checks if not c["exp_alerts"]} == set(names)
    for alert in alerts():
        assert alert["labels"]["severity"] in ("warning", "critical")
        summary = alert["annotations"]["summary"]
        assert summary.endswith(".")
        assert "\n" not in summary
        page = (ROOT / alert["annotations"]["runbook"]).read_text()
        assert page.startswith(f"# {alert['alert']}\n")
        for heading in ("What it means", "Look at", "Do"):
            assert f"**{heading}" in page, f"{alert['alert']}: {heading}"
    pages = {page.name for page in (ROOT / "docs" / "runbooks").glob("*.md")}
    assert pages == {Path(alert["annotations"]["runbook"]).name for alert in alerts()}


@pytest.mark.parametrize("query", queries(), ids=lambda query: query.place)
def test_each_query_asks_for_metrics_and_labels_that_there_are(query: Query) -> None:
    known = own_metrics() | TRITON | TRITON_GPU | KUBELET | RAY
    asked = list(query.metrics())
    assert asked
    for metric, labels in asked:
        assert metric in known
        assert labels <= known[metric] | TARGET, metric


def test_every_metric_of_ours_is_shown_or_watched_by_somebody() -> None:
    asked = {metric for query in queries() for metric, _ in query.metrics()}
    # a histogram is seen by any of its series; windows per request are in the client's page
    seen = {re.sub(r"_(bucket|sum|count)$", "", metric) for metric in asked}
    own = {re.sub(r"_(bucket|sum|count)$", "", metric) for metric in own_metrics()}
    unseen = {metric for metric in own - seen if not metric.startswith("terrafine_serving_")}
    assert not unseen


def test_ray_has_the_metrics_that_are_asked_of_it() -> None:
    for metric, labels in RAY.items():
        gauge = METRICS_GAUGES[metric.removeprefix("ray_")]
        assert labels <= {str(tag) for tag in gauge._view.columns}


@pytest.mark.parametrize("name", dashboards())
def test_dashboard_can_be_read(name: str) -> None:
    dashboard = dashboards()[name]
    assert dashboard["uid"] == f"terrafine-{name}"
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {
            (row, col)
            for row in range(at["y"], at["y"] + at["h"])
            for col in range(at["x"], at["x"] + at["w"])
        }
        assert not cells & taken, f"{panel['title']} lies over another panel"
        assert at["x"] + at["w"] <= 24
        taken |= cells
        if panel["type"] != "row":
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert all(t["datasource"]["uid"] == "${datasource}" for t in panel["targets"])
    titles = [panel["title"] for panel in panels]
    assert len(set(titles)) == len(titles)
