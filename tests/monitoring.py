"""The alert rules and dashboards of k8s/base/monitoring, and the metrics that there are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser
import yaml
from prometheus_client import CollectorRegistry

from terrafine import telemetry

MONITORING = Path(__file__).parents[1] / "k8s" / "base" / "monitoring"

# what Prometheus itself adds to everything that it scrapes through a PodMonitor
TARGET = {"instance", "job", "namespace", "pod", "container", "endpoint"}

# Triton's own, port 8002; tests/integration/test_prometheus.py finds them on a real one
_MODEL = {"model", "version"}
TRITON = {
    "nv_inference_request_success": _MODEL,
    "nv_inference_request_failure": {*_MODEL, "reason"},
    "nv_inference_count": _MODEL,
    "nv_inference_exec_count": _MODEL,
    "nv_inference_queue_duration_us": _MODEL,
    "nv_inference_compute_infer_duration_us": _MODEL,
    "nv_inference_pending_request_count": _MODEL,
}
# where there is a GPU, so not on the machine of the tests
TRITON_GPU = {
    "nv_gpu_utilization": {"gpu_uuid"},
    "nv_gpu_memory_used_bytes": {"gpu_uuid"},
    "nv_gpu_memory_total_bytes": {"gpu_uuid"},
}
KUBELET = {
    "kubelet_volume_stats_available_bytes": {"persistentvolumeclaim"},
    "kubelet_volume_stats_capacity_bytes": {"persistentvolumeclaim"},
}
RAY = {
    "ray_node_cpu_utilization": {"ip"},
    "ray_node_mem_used": {"ip"},
    "ray_node_mem_total": {"ip"},
    "ray_node_gpus_utilization": {"ip", "GpuIndex"},
}


@dataclass(frozen=True)
class Query:
    """A PromQL text, and the alert or the panel it stands in."""

    place: str
    text: str

    def metrics(self) -> Iterator[tuple[str, set[str]]]:
        """Each metric that it asks for, with the labels that it counts on there."""
        yield from _selected(promql_parser.parse(self.text), set())


def rules() -> dict[str, Any]:
    """The PrometheusRule."""
    return dict(yaml.safe_load((MONITORING / "rules" / "terrafine.yaml").read_text()))


def alerts() -> list[dict[str, Any]]:
    return [rule for group in rules()["spec"]["groups"] for rule in group["rules"]]


def dashboards() -> dict[str, dict[str, Any]]:
    """File -> dashboard."""
    files = sorted((MONITORING / "dashboards").glob("*.json"))
    return {file.stem: json.loads(file.read_text()) for file in files}


def queries() -> list[Query]:
    """All of the rules and of the dashboards."""
    found = [Query(alert["alert"], alert["expr"]) for alert in alerts()]
    for name, dashboard in dashboards().items():
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                found.append(Query(f"{name}: {panel['title']}", target["expr"]))
    return found


def own_metrics() -> dict[str, set[str]]:
    """Every metric of ``terrafine.telemetry`` as Prometheus names it -> its labels."""
    registry = CollectorRegistry()
    telemetry.TrainingMetrics("run", registry=registry)
    telemetry.ServingMetrics(registry=registry)
    telemetry.ReleaseMetrics(registry=registry)
    telemetry.MappingMetrics(wave=1, registry=registry)
    telemetry.RayJobMetrics(registry=registry)
    found = {}
    for collector in registry._collector_to_names:
        (family,) = collector.describe()
        labels = set(collector._labelnames)
        if family.type == "counter":
            found[f"{family.name}_total"] = labels
        elif family.type == "histogram":
            found[f"{family.name}_bucket"] = {*labels, "le"}
            found |= dict.fromkeys((f"{family.name}_sum", f"{family.name}_count"), labels)
        else:
            found[family.name] = labels
    runs = telemetry.RunMetrics(Path(__file__).parent, registry=CollectorRegistry())
    return found | {family.name: set(family._labelnames) for family in runs.collect()}


def _selected(node: Any, labels: set[str]) -> Iterator[tuple[str, set[str]]]:
    if isinstance(node, promql_parser.VectorSelector):
        yield node.name, labels | {matcher.name for matcher in node.matchers.matchers}
    elif isinstance(node, promql_parser.MatrixSelector):
        yield from _selected(node.vector_selector, labels)
    elif isinstance(node, promql_parser.AggregateExpr):
        by = set() if node.modifier is None else set(node.modifier.labels)
        yield from _selected(node.expr, labels | by)
    elif isinstance(node, promql_parser.BinaryExpr):
        matching = node.modifier and node.modifier.matching
        on = set(matching.labels) if matching else set()
        yield from _selected(node.lhs, labels | on)
        yield from _selected(node.rhs, labels | on)
    elif isinstance(node, promql_parser.Call):
        for argument in node.args:
            yield from _selected(argument, labels)
    elif isinstance(node, (promql_parser.ParenExpr, promql_parser.SubqueryExpr)):
        yield from _selected(node.expr, labels)
