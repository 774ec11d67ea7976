"""Metrics of runs: of the RayJob that a step waits for, and of all work directories."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from terrafine.errors import StageError
from terrafine.status import StageStatus, read_statuses


class RayJobMetrics:
    """A RayJob as its launcher sees it, set by being its observer."""

    def __init__(self, *, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"terrafine_rayjob_{name}", text, labels, registry=registry)

        self._launched = counter(
            "launched", "RayJobs created, found again or created anew.", "stage", "how"
        )
        self._ended = counter("ended", "RayJobs that came to their end.", "stage", "status")
        self._retries = counter("api_retries", "Requests to the API server made again.", "cause")
        self._seconds = Gauge(
            "terrafine_rayjob_seconds",
            "Age of the RayJob that is waited for, by what it does now.",
            ["stage", "status"],
            registry=registry,
        )
        self._latest: dict[str, str] = {}

    def launched(self, stage: str, how: str) -> None:
        """A launcher has its RayJob."""
        self._launched.labels(stage, how).inc()

    def status(self, stage: str, status: str, seconds: float) -> None:
        """What the RayJob does so many seconds after its creation."""
        before = self._latest.get(stage)
        if before not in (None, status):
            self._seconds.remove(stage, before)
        self._latest[stage] = status
        self._seconds.labels(stage, status).set(seconds)

    def ended(self, stage: str, status: str) -> None:
        """It succeeded, or failed for this reason."""
        self._ended.labels(stage, status).inc()

    def retried(self, cause: str) -> None:
        """The API server did not answer, or not well."""
        self._retries.labels(cause).inc()


class RunMetrics(Collector):
    """How the stages of all runs in ``folder`` stand, looked up whenever Prometheus asks.

    ``folder``: holds work directories, or is one; ``run`` is a work directory's name. What a stage
    that ended too soon to be scraped had to say is told here for as long as its files are there:
    failures, and the gates' decisions.
    """

    def __init__(self, folder: Path, *, registry: CollectorRegistry) -> None:
        self._folder = folder
        registry.register(self)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Called by the registry."""
        made = {
            name: GaugeMetricFamily(f"terrafine_{name}", text, labels=labels)
            for name, (text, labels) in _RUNS.items()
        }
        for run in sorted(self._runs()):
            try:
                stages = read_statuses(run)
            except StageError:
                made["run_unreadable"].add_metric([run.name], 1)
                continue
            for status in stages.values():
                _add(made, run.name, status)
        if self._folder.is_dir():
            disk = shutil.disk_usage(self._folder)
            made["disk_free_bytes"].add_metric([str(self._folder)], disk.free)
            made["disk_size_bytes"].add_metric([str(self._folder)], disk.total)
        yield from made.values()

    def _runs(self) -> set[Path]:
        found = [*self._folder.glob("*/status.json"), *self._folder.glob("*/*/status.json")]
        return {path.parents[1] for path in found}


_STAGE = ("run", "stage")
_RUNS = {
    "stage_running": ("Whether the stage is at work.", _STAGE),
    "stage_workers": ("Workers of a stage at work.", _STAGE),
    "stage_done_ratio": ("Share of the task in hand that is done.", _STAGE),
    "stage_seconds_left": ("Until the end of the task in hand, at its mean speed.", _STAGE),
    "stage_started_timestamp_seconds": ("When the stage began last.", _STAGE),
    "stage_alive_timestamp_seconds": ("Last sign of life of a stage at work.", _STAGE),
    "stage_moved_timestamp_seconds": ("When its work last went on, or ended.", _STAGE),
    "stage_failed": ("A stage that failed, by the class of its error.", (*_STAGE, "error")),
    "gate_decided_timestamp_seconds": (
        "When a run's gate decided last, by its decision and the name the model is served under.",
        ("run", "model", "decision"),
    ),
    "run_unreadable": ("A work directory whose status files cannot be read.", ("run",)),
    "disk_free_bytes": ("Free space where the runs are.", ("folder",)),
    "disk_size_bytes": ("Size of that disk.", ("folder",)),
}


def _add(made: dict[str, GaugeMetricFamily], run: str, status: StageStatus) -> None:
    labels = [run, status.stage]
    made["stage_running"].add_metric(labels, status.state == "running")
    made["stage_started_timestamp_seconds"].add_metric(labels, status.started.timestamp())
    made["stage_moved_timestamp_seconds"].add_metric(labels, status.moved.timestamp())
    if status.state == "running":
        made["stage_workers"].add_metric(labels, status.workers)
        made["stage_alive_timestamp_seconds"].add_metric(labels, status.alive.timestamp())
        if (doing := status.doing) is not None:
            made["stage_done_ratio"].add_metric(labels, doing.done / max(doing.total, 1))
            if doing.seconds_left is not None:
                made["stage_seconds_left"].add_metric(labels, doing.seconds_left)
    if status.state == "failed":
        made["stage_failed"].add_metric([*labels, status.kind], 1)
    if status.stage == "gate" and status.state == "done":
        made["gate_decided_timestamp_seconds"].add_metric(
            [run, status.serves, str(status.metrics["decision"])], status.moved.timestamp()
        )
