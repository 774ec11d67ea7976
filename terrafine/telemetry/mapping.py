"""Metrics of a running map."""

from __future__ import annotations

import math
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from terrafine.mapping.watch import Figures
from terrafine.mapping.write import ShardReceipt
from terrafine.telemetry.serving import RequestRecord, ServingMetrics, VersionStatistics


class MappingMetrics:
    """A running map's metrics, set by being told by its watch (``terrafine.mapping.MapWatch``).

    ``wave``: shards that are committed together; ``model``: its name on the model servers, where
    they are asked: ``ServingMetrics`` of all workers' requests are kept then.
    """

    def __init__(self, *, wave: int, registry: CollectorRegistry, model: str | None = None) -> None:
        self._model = model
        self._requests = None if model is None else ServingMetrics(registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"terrafine_mapping_{name}", text, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"terrafine_mapping_{name}", text, labels, registry=registry)

        self._planned = gauge("shards_planned", "Shards of the whole run.")
        self._done = gauge("shards_done", "Shards that are written, those of earlier starts too.")
        self._in_flight = gauge("shards_in_flight", "Shards that workers have now.")
        self._uncommitted = gauge(
            "shards_uncommitted",
            "Written, but not readable yet; stays at a whole wave while the store takes a commit.",
        )
        gauge("wave_shards", "Shards that are committed together.").set(wave)
        self._speed = gauge("pixels_per_second", "Pixels written per second since the start.")
        self._left = gauge("seconds_left", "Until the end at that speed; NaN before a shard.")
        self._queue = gauge(
            "server_queue_seconds", "Mean wait in the model servers' queues; NaN without servers."
        )
        self._unreadable = gauge("unreadable_scenes", "Scenes that workers could not read.")
        self._pixels = counter("pixels", "Pixels written since the start.", "kind")
        self._seconds = counter(
            "worker_seconds", "Time that workers spent, all together, by step.", "step"
        )
        self._lost = counter("lost_workers", "Workers that died and were started again.")
        self._failed = counter(
            "failed_tries", "Requests to model servers that failed and were repeated.", "cause"
        )
        self._commit = Histogram(
            "terrafine_mapping_commit_seconds",
            "Time that a commit of a wave took.",
            registry=registry,
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
        )
        self._scenes: set[str] = set()

    def figures(self, now: Figures) -> None:
        """How the map goes now."""
        self._planned.set(now.shards)
        self._done.set(now.done)
        self._in_flight.set(now.in_flight)
        self._speed.set(1e6 * now.mpixel_per_s)
        for gauge, value in ((self._left, now.seconds_left), (self._queue, now.queue_seconds)):
            gauge.set(math.nan if value is None else value)

    def shard(self, receipt: ShardReceipt) -> None:
        """A shard was written."""
        self._uncommitted.inc()
        self._pixels.labels("mapped").inc(receipt.account.mapped)
        self._pixels.labels("without data").inc(receipt.account.explained)
        for step, seconds in receipt.seconds.items():
            self._seconds.labels(step).inc(seconds)
        self._scenes |= receipt.unreadable.keys()
        self._unreadable.set(len(self._scenes))

    def commit(self, shards: int, seconds: float) -> None:
        """So many shards became readable."""
        self._commit.observe(seconds)
        self._uncommitted.dec(shards)

    def lost_worker(self) -> None:
        """A worker died and was started again."""
        self._lost.inc()

    def failed_tries(self, cause: str, times: int) -> None:
        """So many more tries failed for this reason."""
        self._failed.labels(cause).inc(times)
        if self._requests is not None and self._model is not None:
            self._requests.failure(self._model, cause, times)

    def request(self, record: RequestRecord) -> None:
        """Model servers answered a request."""
        if self._requests is not None:
            self._requests.request(record)

    def servers(self, found: Iterable[VersionStatistics]) -> None:
        """What model servers have counted, read from them now and then."""
        if self._requests is not None:
            self._requests.server(found)
