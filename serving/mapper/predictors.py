"""The predictor that a spec asks for, opened anew in every worker."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from terrafine.export import Release
from terrafine.mapping import Prediction, Predictor, local_predictor
from terrafine.spec import MapSpec

if TYPE_CHECKING:
    from terrafine.export.session import UInt16Array
    from terrafine.telemetry import RequestRecord

# of one try: a connection that the network has forgotten is given up after that
_PATIENCE = 60.0
_SHORTEST_PATIENCE = 15.0
# until a server has answered the driver: an address where none does is more often a wrong one
_CONNECT = 10.0


def predictor_for(spec: MapSpec, release: Release, bundle: Path) -> Callable[[], Predictor]:
    """How a worker opens the model of ``release``; the function it gives can be pickled.

    Of model servers only the release itself is asked, by its digest.
    """
    if spec.map.predictor != "triton":
        return local_predictor(spec, release, bundle)
    assert spec.map.server is not None, "checked by the spec"
    return OpenServed(spec.map.server, spec.serve.name, release.digest, spec.map.deadline)


@dataclass(frozen=True)
class OpenServed:
    """How a model on Triton servers is opened.

    ``connect``: seconds until one of them must have answered. What is pickled is for a worker,
    which may start while servers restart: there it is the ``deadline`` of requests.
    """

    url: str
    model: str
    release: str
    deadline: float
    connect: float = _CONNECT

    def __call__(self) -> ServedPredictor:
        """Connect; raises as ``TritonPredictor``."""
        return ServedPredictor(
            self.url, model=self.model, release=self.release, deadline=self.deadline,
            connect=self.connect,
        )  # fmt: skip

    def __reduce__(self) -> tuple[object, ...]:
        return OpenServed, (self.url, self.model, self.release, self.deadline, self.deadline)


class ServedPredictor:
    """A model on Triton servers, which counts the tries that failed (``terrafine.mapping.Served``).

    ``deadline``: seconds for one request with all its tries; ``connect``: until a server has
    answered at first. Raises as ``TritonPredictor``.
    """

    def __init__(
        self, url: str, *, model: str, release: str, deadline: float, connect: float = _CONNECT
    ) -> None:
        # grpc takes a moment to import, which other commands need not wait for
        from serving.triton.client import TritonPredictor

        self._lock = threading.Lock()
        self._failed: Counter[str] = Counter()
        self._waited = (0, 0.0)
        self._model = TritonPredictor(
            url, model=model, release=release, deadline=deadline, connect=connect,
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

    def failure(self, model: str, cause: str) -> None:
        """A try failed and is repeated."""
        with self._lock:
            self._failed[cause] += 1

    @property
    def failed_tries(self) -> Mapping[str, int]:
        """Cause -> tries of this process that failed so far."""
        with self._lock:
            return dict(self._failed)

    def queue_seconds(self) -> float | None:
        """What requests answered since the last call waited in the servers' queues, on average.

        None when there were none, or no server says.
        """
        try:
            found = self._model.statistics()
        except ValueError:  # a ServingError, or what gRPC says of a connection that was given up
            return None
        requests, seconds = self._waited
        self._waited = sum(v.requests for v in found), sum(v.queue_seconds for v in found)
        new = self._waited[0] - requests
        return max(self._waited[1] - seconds, 0.0) / new if new > 0 else None
