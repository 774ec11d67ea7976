"""Metrics of model servers: as their clients see them, and as their watch does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


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
    """A model server's metrics as its client sees them, set by being its observer.

    A map keeps them of all its workers (``MappingMetrics``).
    """

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

    def failure(self, model: str, cause: str, times: int = 1) -> None:
        """A try failed, or so many did, and is repeated."""
        self._failures.labels(model, cause).inc(times)

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
        self._since = gauge("champion_since_timestamp_seconds", "When it became champion.")
        self._live = gauge("server_live", "Whether the server answers at all.", "server")
        self._passed = gauge(
            "canary_passed", "Whether the champion answers there as at export.", "server"
        )
        self._agreement = gauge(
            "canary_class_agreement", "Share of equal classes in the latest canary.", "server"
        )
        self._seconds = gauge("canary_seconds", "Time that the latest canary took.", "server")
        self._looked = gauge("looked_timestamp_seconds", "When all servers were last looked at.")
        self._healed = Counter(
            "terrafine_serving_healed",
            "Times that the champion was loaded anew because it did not answer.",
            ["model", "server"],
            registry=registry,
        )
        self._of_servers = (
            self._live, self._passed, self._agreement, self._seconds, self._healed
        )  # fmt: skip
        self._servers: dict[str, set[str]] = {}

    def champion(self, model: str, version: int, since: datetime | None) -> None:
        """A version is champion ``since`` then; 0 for none."""
        self._champion.labels(model).set(version)
        if since is not None:
            self._since.labels(model).set(since.timestamp())

    def server(
        self, model: str, server: str, *, live: bool, passed: bool, agreement: float, seconds: float
    ) -> None:
        """A server was looked at."""
        self._servers.setdefault(model, set()).add(server)
        self._live.labels(model, server).set(live)
        self._passed.labels(model, server).set(passed)
        self._agreement.labels(model, server).set(agreement)
        self._seconds.labels(model, server).set(seconds)

    def looked(self, model: str, servers: Iterable[str]) -> None:
        """All servers were looked at; those that are gone are told of no more."""
        kept = set(servers)
        for gone in self._servers.get(model, set()) - kept:
            for metric in self._of_servers:
                metric.remove(model, gone)
        self._servers[model] = kept
        self._looked.labels(model).set_to_current_time()

    def healed(self, model: str, server: str) -> None:
        """A server answers again."""
        self._healed.labels(model, server).inc()
