"""Every metric's name, help text and labels; served over HTTP for Prometheus."""

from terrafine.telemetry.mapping import MappingMetrics
from terrafine.telemetry.port import run_port, serve
from terrafine.telemetry.runs import RayJobMetrics, RunMetrics
from terrafine.telemetry.serving import (
    ReleaseMetrics,
    RequestRecord,
    ServingMetrics,
    VersionStatistics,
)
from terrafine.telemetry.training import TrainingMetrics

__all__ = [
    "MappingMetrics",
    "RayJobMetrics",
    "ReleaseMetrics",
    "RequestRecord",
    "RunMetrics",
    "ServingMetrics",
    "TrainingMetrics",
    "VersionStatistics",
    "run_port",
    "serve",
]
