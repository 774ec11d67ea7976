"""Metrics over HTTP, for Prometheus to read."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server

from terrafine.errors import StageError

RUN_PORT = "TERRAFINE_RUN_METRICS_PORT"


def run_port(spec: int | None) -> int | None:
    """Where a training or a map serves its metrics: the port of its spec, else that of
    ``TERRAFINE_RUN_METRICS_PORT``, else none.

    Raises StageError where that variable holds no port.
    """
    given = os.environ.get(RUN_PORT)
    if spec is not None or not given:
        return spec
    if not given.isdecimal() or not 1024 <= int(given) <= 65535:
        raise StageError(f"{RUN_PORT}={given}: give a port from 1024 to 65535, or unset it")
    return int(given)


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
