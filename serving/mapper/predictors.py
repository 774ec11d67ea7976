"""The predictor that a spec asks for, opened anew in every worker."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from terrafine.export import Release
from terrafine.mapping import Prediction, Predictor, local_predictor
from terrafine.spec import MapSpec

if TYPE_CHECKING:
    from terrafine.export.session import UInt16Array
    from terrafine.telemetry import RequestRecord, VersionStatistics

# of one try: a connection that the network has forgotten is given up after that
_PATIENCE = 60.0
_SHORTEST_PATIENCE = 15.0
# until a server has answered the driver: an address where none does is more often a wrong one
_CONNECT = 10.0
# requests that are kept for whoever asks for them; they are fetched every second
_KEPT = 10_000


def predictor_for(spec: MapSpec, release: Release, bundle: Path) -> Callable[[], Predictor]:
    """How a worker opens the model of ``release``; the function it gives can be pickled.

    Of model servers only the release itself is asked, by its digest, run as the spec's section
    ``serve`` has it.
    """
    if spec.map.predictor != "triton":
        return local_predictor(spec, release, bundle)
    # grpc takes a moment to import, which other commands need not wait for
    from serving.triton.config import engine

    assert spec.map.server is not None, "checked by the spec"
    serve = spec.serve
    return OpenServed(
        spec.map.server, serve.name, release.digest, engine(serve.variant, serve.tensorrt),
        spec.map.deadline,
    )  # fmt: skip


@dataclass(frozen=True)
class OpenServed:
    """How a model on Triton servers is opened: the same release and engine in every worker.

    ``connect``: seconds until one of them must have answered. What is pickled is for a worker,
    which may start while servers restart: there it is the ``deadline`` of requests.
    """

    url: str
    model: str
    release: str
    engine: str
    deadline: float
    connect: float = _CONNECT

    def __call__(self) -> ServedPredictor:
        """Connect; raises as ``TritonPredictor``."""
        return ServedPredictor(
            self.url, model=self.model, release=self.release, engine=self.engine,
            deadline=self.deadline, connect=self.connect,
        )  # fmt: skip

    def __reduce__(self) -> tuple[object, ...]:
        return OpenServed, (
            self.url, self.model, self.release, self.engine, self.deadline, self.deadline,
        )  # fmt: skip


class ServedPredictor:
    """A model on Triton servers, which counts the tries that failed (``terrafine.mapping.Served``).

    ``deadline``: seconds for one request with all its tries; ``connect``: until a server has
    answered at first. Raises as ``TritonPredictor``.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str,
        release: str,
        engine: str,
        deadline: float,
        connect: float = _CONNECT,
    ) -> None:
        from serving.triton.client import TritonPredictor

        self._lock = threading.Lock()
        self._failed: Counter[str] = Counter()
        self._answered: deque[RequestRecord] = deque(maxlen=_KEPT)
        self._counted: Sequence[VersionStatistics] = ()
        self._waited = (0, 0.0)
        self._model = TritonPredictor(
            url, model=model, release=release, engine=engine, deadline=deadline, connect=connect,
            patience=min(_PATIENCE, max(deadline / 4, _SHORTEST_PATIENCE), deadline), observer=self,
        )  # fmt: skip

    @property
    def window(self) -> int:
        """Pixels a side of the windows it takes."""
        return self._model.window

    def predict(self, windows_NCHW: UInt16Array) -> Prediction:
        """Classify windows; ServingError when no server has answered until the deadline."""
        return self._model.predict(windows_NCHW)

    def give_up(self) -> None:
        """End what is under way at once: nobody waits for an answer any more."""
        self._model.give_up()

    def request(self, record: RequestRecord) -> None:
        """A request was answered."""
        with self._lock:
            self._answered.append(record)

    def failure(self, model: str, cause: str) -> None:
        """A try failed and is repeated."""
        with self._lock:
            self._failed[cause] += 1

    @property
    def failed_tries(self) -> Mapping[str, int]:
        """Cause -> tries of this process that failed so far."""
        with self._lock:
            return dict(self._failed)

    def answered(self) -> Sequence[RequestRecord]:
        """Requests of this process that were answered since the last call."""
        with self._lock:
            records = tuple(self._answered)
            self._answered.clear()
        return records

    @property
    def counted(self) -> Sequence[VersionStatistics]:
        """What the servers had counted when they were last asked for ``queue_seconds``."""
        return self._counted

    def queue_seconds(self) -> float | None:
        """What requests answered since the last call waited in the servers' queues, on average.

        None when there were none, or no server says.
        """
        try:
            found = self._model.statistics()
        except ValueError:  # a ServingError, or what gRPC says of a connection that was given up
            return None
        self._counted = found
        requests, seconds = self._waited
        self._waited = sum(v.requests for v in found), sum(v.queue_seconds for v in found)
        new = self._waited[0] - requests
        return max(self._waited[1] - seconds, 0.0) / new if new > 0 else None
