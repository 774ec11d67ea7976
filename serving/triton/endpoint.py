"""One Triton server, as those who administer it speak to it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from socket import gethostbyname_ex
from types import TracebackType
from typing import Any, Self

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from serving.triton.replicas import CHANNEL, parse_url
from terrafine.errors import ServingError
from terrafine.export import INPUT, OUTPUTS, Prediction
from terrafine.export.session import UInt16Array

# "key=value" of the server's --grpc-restricted-protocol
ADMIN_VARIABLE = "TERRAFINE_TRITON_ADMIN"
_SCHEME = "grpc://"
_QUEUE_SECONDS = 10.0
# a full batch of the paper's network takes 46 s on two CPU cores
_SECONDS_OF_A_BATCH = 60.0
_BATCHES = 3


def endpoint_addresses(
    url: str, resolve: Callable[[str], Sequence[str]] = lambda host: gethostbyname_ex(host)[2]
) -> list[str]:
    """``host:port`` of each server of ``grpc://host:port[,host:port]``.

    A name with several addresses (a headless Service) is all of them: what is loaded has to be
    loaded on each. ``resolve``: host -> its addresses.
    """
    found: list[str] = []
    for address in parse_url(url):
        host, _, port = address.rpartition(":")
        try:
            several = sorted(resolve(host))
        except OSError:
            several = []  # the server that is away is named when it is asked
        found += [f"{ip}:{port}" for ip in several] if len(several) > 1 else [address]
    return found


class BusyError(ServingError):
    """A server is well, but has no room for another request now."""


class _LateError(ServingError):
    """A server did not answer in time."""


class Endpoint:
    """A server's models: load, unload, look, ask. ServingError where it does not do so.

    ``seconds``: for a load, which may compile engines. ``patience``: seconds in which a version
    that does not hang ends a batch, where it has not shown yet that it takes longer.
    """

    def __init__(
        self, address: str, *, seconds: float = 600, patience: float = _SECONDS_OF_A_BATCH
    ) -> None:
        self.address = address
        self._client = triton.InferenceServerClient(address, channel_args=list(CHANNEL))
        self._headers = _admin_headers()
        self._load_seconds = seconds
        self._patience = patience

    def live(self) -> bool:
        """Whether it answers at all.

        A connection that was lost fails a few times after the server is back, so it is tried again.
        """
        for pause in (0.1, 0.5, 1.0, 0.0):
            try:
                return bool(self._client.is_server_live(client_timeout=5))
            except InferenceServerException:
                time.sleep(pause)
        return False

    def load(self, name: str) -> None:
        """Load what the repository says now; what was loaded serves until that is ready."""
        with self._explained(f"load {name}"):
            self._client.load_model(name, headers=self._headers, client_timeout=self._load_seconds)

    def unload(self, name: str) -> None:
        """Unload a model; one that is not loaded is no error."""
        with self._explained(f"unload {name}"):
            self._client.unload_model(name, headers=self._headers, client_timeout=self._patience)

    def versions(self, name: str) -> dict[int, str]:
        """Version -> "READY", or why it is not, of all that the server knows of a model."""
        with self._explained("list its models"):
            index = self._client.get_model_repository_index(
                headers=self._headers, client_timeout=self._patience
            )
        return {
            int(model.version): model.state if model.state == "READY" else model.reason
            for model in index.models
            if model.name == name and model.version
        }

    def ask(self, name: str, version: int, windows_NCHW: UInt16Array) -> Prediction:
        """What a version says of windows that are sent as one request; arrays of (N, H, W).

        A full queue is tried again for some seconds; then BusyError, as where there is no answer in
        the time of several batches (:func:`slowest_batch`) but others get theirs.
        """
        deadline = time.monotonic() + _QUEUE_SECONDS
        while True:
            with self._explained(f"answer for {name} version {version}"):
                before = self._statistics(name, version)
            patience = max(self._patience, _BATCHES * slowest_batch(before))
            try:
                return self._ask(name, version, windows_NCHW, patience * len(windows_NCHW))
            except BusyError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
            except _LateError as error:
                with self._explained("say what it has done"):
                    after = self._statistics(name, version)
                works = _executions(after) > _executions(before)
                if works:
                    raise BusyError(str(error)) from error
                raise

    def _statistics(self, name: str, version: int) -> Any:
        return self._client.get_inference_statistics(
            name, str(version), client_timeout=self._patience
        )

    def _ask(
        self, name: str, version: int, windows_NCHW: UInt16Array, seconds: float
    ) -> Prediction:
        image = triton.InferInput(INPUT, list(windows_NCHW.shape), "UINT16")
        image.set_data_from_numpy(windows_NCHW)
        outputs = [triton.InferRequestedOutput(output) for output in OUTPUTS]
        with self._explained(f"answer for {name} version {version}"):
            answer: Any = self._client.infer(
                name, [image], str(version), outputs, client_timeout=seconds
            )
        found = [answer.as_numpy(output) for output in OUTPUTS]
        wanted = (len(windows_NCHW), *windows_NCHW.shape[2:])
        if any(a is None or a.shape != wanted or a.dtype != np.uint8 for a in found):
            raise ServingError(
                f"{_SCHEME}{self.address}: {name} version {version} gives other arrays than "
                f"uint8 of {wanted}; deploy the release again"
            )
        return Prediction(*found)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def _explained(self, verb: str) -> Iterator[None]:
        try:
            yield
        except InferenceServerException as error:
            said = " ".join(str(error.message()).split())
            remedy = (
                f"set {ADMIN_VARIABLE} to the server's admin-key=value"
                if "protocol is restricted" in said
                else "see the server's log"
            )
            raise _kind(error)(
                f"{_SCHEME}{self.address}: did not {verb}: {said[:400]}; {remedy}"
            ) from error


def slowest_batch(statistics: Any) -> float:
    """Mean seconds that a version took for a batch of the size that took it longest; 0.0 where it
    has run none. ``statistics``: a server's ModelStatisticsResponse."""
    computed = [
        size.compute_infer for found in statistics.model_stats for size in found.batch_stats
    ]
    return max((took.ns / took.count / 1e9 for took in computed if took.count), default=0.0)


def _executions(statistics: Any) -> int:
    """Batches that a version has run so far: it hangs where they do not become more."""
    return int(sum(found.execution_count for found in statistics.model_stats))


def _kind(error: InferenceServerException) -> type[ServingError]:
    words = str(error.message())
    if any(sign in words for sign in ("maximum queue size", "timeout expired")):
        return BusyError
    late = str(error.status()) == "StatusCode.DEADLINE_EXCEEDED"
    return _LateError if late else ServingError


def _admin_headers() -> dict[str, str] | None:
    stated = os.environ.get(ADMIN_VARIABLE)
    if not stated:
        return None
    key, _, value = stated.partition("=")
    return {f"triton-grpc-protocol-{key}": value}
