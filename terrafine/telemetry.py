"""Every metric's name, help text and labels; served over HTTP for Prometheus."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from terrafine.errors import StageError
from terrafine.mapping.write import ShardReceipt
from terrafine.training import EpochRecord, StepRecord


class TrainingMetrics:
    """A training's metrics, set by being its observer.

    Metrics of one ``registry``; ``run`` is a label of each, so that the trainings of several runs,
    and the preliminary and the final one of the same run, are told apart.
    """

    def __init__(self, run: str, *, registry: CollectorRegistry) -> None:
        self._run = run

        def counter(name: str, text: str) -> Counter:
            made = Counter(f"terrafine_training_{name}", text, ["run"], registry=registry)
            return made.labels(run)

        def gauge(name: str, text: str) -> Gauge:
            made = Gauge(f"terrafine_training_{name}", text, ["run"], registry=registry)
            return made.labels(run)

        self._steps = counter("steps", "Optimiser steps taken since this process started.")
        self._pixels = counter("pixels", "Pixels of the crops trained on since then, all workers.")
        self._step = gauge("step", "Latest optimiser step of the training.")
        self._epoch = gauge("epoch", "Epoch that is being trained, from 1.")
        self._loss = gauge("loss", "Mean loss over the labelled pixels of the latest step.")
        self._rate = gauge("learning_rate", "Learning rate of the latest step.")
        self._speed = gauge("pixels_per_second", "Pixels trained on per second, all workers.")
        self._wait = gauge("loader_wait_ratio", "Share of the time spent waiting for chips.")
        self._memory = gauge("gpu_memory_bytes", "Most GPU memory tensors ever took; 0: CPU.")
        self._validation_loss = gauge("validation_loss", "Mean loss on the validation chips.")
        self._agreement = gauge(
            "validation_agreement", "Share of labelled validation pixels that agree with labels."
        )
        self._checkpoint = gauge("checkpoint_step", "Step of the latest checkpoint in storage.")
        self._recall = Gauge(
            "terrafine_training_validation_recall",
            "That share among the validation pixels of each class of the labels.",
            ["run", "class"],
            registry=registry,
        )

    def step(self, record: StepRecord) -> None:
        """An optimiser step was taken."""
        self._steps.inc()
        self._pixels.inc(record.pixels)
        self._step.set(record.step)
        self._epoch.set(record.epoch)
        self._loss.set(record.loss)
        self._rate.set(record.learning_rate)
        self._speed.set(record.pixels_per_second)
        self._wait.set(record.loader_wait)
        self._memory.set(record.gpu_memory_bytes)

    def epoch(self, record: EpochRecord) -> None:
        """An epoch was trained and validated."""
        self._epoch.set(record.epoch)
        self._validation_loss.set(record.validation_loss)
        self._agreement.set(record.validation_agreement)
        for name, share in record.validation_recall.items():
            # a class that validation has none of has no accuracy
            if share is not None:
                self._recall.labels(self._run, name).set(share)

    def checkpoint(self, step: int) -> None:
        """The state after ``step`` steps is safe in storage."""
        self._checkpoint.set(step)


@dataclass(frozen=True)
class RequestRecord:
    """One request that a model server answered.

    ``seconds``: from the first try to the answer; ``sent``, ``received``: bytes of the messages
    (what lies in shared memory does not travel); ``tries``: 1 where nothing failed.
    """

    model: str
    version: str
    shared_memory: bool
    windows: int
    pixels: int
    seconds: float
    sent: int
    received: int
    tries: int


@dataclass(frozen=True)
class VersionStatistics:
    """What a server has counted of one version of a model since it was loaded.

    ``requests``, ``failures``: answered and refused; ``windows``: in them; ``executions``: batches
    that were run for them; ``seconds``: of all answered requests, of which ``queue_seconds``
    waiting and ``compute_seconds`` inside the model.
    """

    server: str
    model: str
    version: str
    requests: int
    failures: int
    windows: int
    executions: int
    seconds: float
    queue_seconds: float
    compute_seconds: float


class ServingMetrics:
    """A model server's metrics as its client sees them, set by being its observer."""

    def __init__(self, *, registry: CollectorRegistry) -> None:
        def named(name: str) -> str:
            return f"terrafine_serving_{name}"

        self._seconds = Histogram(
            named("request_seconds"),
            "Time from sending a request to its answer, all tries together.",
            ["model", "transport"],
            registry=registry,
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100),
        )
        self._batch = Histogram(
            named("batch_windows"),
            "Windows in a request.",
            ["model"],
            registry=registry,
            buckets=(1, 2, 4, 8, 16, 32),
        )
        self._pixels = Counter(
            named("pixels"), "Pixels that were answered.", ["model"], registry=registry
        )
        self._bytes = Counter(
            named("message_bytes"),
            "Bytes of the messages; divided by the pixels: bytes per pixel on the wire.",
            ["model", "direction"],
            registry=registry,
        )
        self._failures = Counter(
            named("failed_tries"),
            "Tries that failed, by cause.",
            ["model", "cause"],
            registry=registry,
        )
        self._version = Gauge(
            named("answering_version"), "Version that answered last.", ["model"], registry=registry
        )
        server = ["server", "model", "version"]
        self._server = {
            what: Gauge(named(f"server_{what}"), text, server, registry=registry)
            for what, text in (
                ("requests", "Requests that the server has answered."),
                ("failures", "Requests that the server has refused or failed."),
                ("windows", "Windows in the requests that it has answered."),
                ("executions", "Batches that it has run for them."),
                ("queue_seconds", "Time that they waited in its queue."),
                ("compute_seconds", "Time that its model computed."),
            )
        }

    def request(self, record: RequestRecord) -> None:
        """A request was answered."""
        transport = "shared memory" if record.shared_memory else "grpc"
        self._seconds.labels(record.model, transport).observe(record.seconds)
        self._batch.labels(record.model).observe(record.windows)
        self._pixels.labels(record.model).inc(record.pixels)
        self._bytes.labels(record.model, "sent").inc(record.sent)
        self._bytes.labels(record.model, "received").inc(record.received)
        self._version.labels(record.model).set(int(record.version))

    def failure(self, model: str, cause: str) -> None:
        """A try failed and is repeated."""
        self._failures.labels(model, cause).inc()

    def server(self, found: Iterable[VersionStatistics]) -> None:
        """What the servers have counted, read from them now and then."""
        for version in found:
            for what, gauge in self._server.items():
                labels = (version.server, version.model, version.version)
                gauge.labels(*labels).set(getattr(version, what))


class ReleaseMetrics:
    """Which version model servers have to serve, and whether they do, as their watch sees it."""

    def __init__(self, *, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"terrafine_serving_{name}", text, ["model", *labels], registry=registry)

        self._champion = gauge("champion_version", "Version that is champion by the repository.")
        self._live = gauge("server_live", "Whether the server answers at all.", "server")
        self._passed = gauge(
            "canary_passed", "Whether the champion answers there as at export.", "server"
        )
        self._agreement = gauge(
            "canary_class_agreement", "Share of equal classes in the latest canary.", "server"
        )
        self._seconds = gauge("canary_seconds", "Time that the latest canary took.", "server")
        self._healed = Counter(
            "terrafine_serving_healed",
            "Times that the champion was loaded anew because it did not answer.",
            ["model", "server"],
            registry=registry,
        )

    def champion(self, model: str, version: int) -> None:
        """A version is champion; 0 for none."""
        self._champion.labels(model).set(version)

    def server(
        self, model: str, server: str, *, live: bool, passed: bool, agreement: float, seconds: float
    ) -> None:
        """A server was looked at."""
        self._live.labels(model, server).set(live)
        self._passed.labels(model, server).set(passed)
        self._agreement.labels(model, server).set(agreement)
        self._seconds.labels(model, server).set(seconds)

    def healed(self, model: str, server: str) -> None:
        """A server answers again."""
        self._healed.labels(model, server).inc()


class MappingMetrics:
    """A running map's metrics, set by being its observer."""

    def __init__(self, *, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"terrafine_mapping_{name}", text, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"terrafine_mapping_{name}", text, labels, registry=registry)

        self._planned = gauge("shards_planned", "Shards of the whole run.")
        self._done = gauge("shards_done", "Shards that are written, those of earlier starts too.")
        self._in_flight = gauge("shards_in_flight", "Shards that workers have now.")
        self._unreadable = gauge("unreadable_scenes", "Scenes that workers could not read.")
        self._pixels = counter("pixels", "Pixels written since the start.", "kind")
        self._seconds = counter(
            "worker_seconds", "Time that workers spent, all together, by step.", "step"
        )
        self._lost = counter("lost_workers", "Workers that died and were started again.")
        self._commit = Histogram(
            "terrafine_mapping_commit_seconds",
            "Time that a commit of a wave took.",
            registry=registry,
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
        )
        self._scenes: set[str] = set()

    def started(self, planned: int, done: int) -> None:
        """A run of ``planned`` shards begins with ``done`` of them."""
        self._planned.set(planned)
        self._done.set(done)

    def shard(self, receipt: ShardReceipt) -> None:
        """A shard was written."""
        self._done.inc()
        self._pixels.labels("mapped").inc(receipt.account.mapped)
        self._pixels.labels("without data").inc(receipt.account.explained)
        for step, seconds in receipt.seconds.items():
            self._seconds.labels(step).inc(seconds)
        self._scenes |= receipt.unreadable.keys()
        self._unreadable.set(len(self._scenes))

    def commit(self, shards: int, seconds: float) -> None:
        """So many shards became readable."""
        self._commit.observe(seconds)

    def in_flight(self, shards: int) -> None:
        """So many shards are handed out to workers."""
        self._in_flight.set(shards)

    def lost_worker(self) -> None:
        """A worker died and was started again."""
        self._lost.inc()


@contextmanager
def serve(
    port: int, registry: CollectorRegistry, *, key: str = "training.metrics_port"
) -> Iterator[int]:
    """Answer ``/metrics`` on ``port`` (0: a free one, which is given back) until the end.

    Raises StageError, which names the spec's ``key``, when the port is taken or may not be used.
    """
    try:
        server, thread = start_http_server(port, registry=registry)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        reason = "is in use" if taken else f"cannot be used ({error.strerror})"
        raise StageError(
            f"metrics port {port} {reason}; give {key} another, or leave it out"
        ) from error
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
