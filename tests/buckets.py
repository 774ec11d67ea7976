"""A bucket: a real S3 server (moto's) on this machine, reached over HTTP."""

from __future__ import annotations

import os
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import boto3
from moto.server import DomainDispatcherApplication, ThreadedMotoServer, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

_REASONS = {400: "ExpiredToken", 401: "Unauthorized", 403: "AccessDenied", 500: "InternalError"}


@contextmanager
def s3_bucket() -> Iterator[str]:
    """URL of an empty bucket; the environment names its server while it is there."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with _bucket(f"http://{host}:{port}") as url:
        yield url
    server.stop()


@dataclass
class Weather:
    """How ill an S3 server is: shares of requests that it answers by 503, that it carries out and
    answers by 503 all the same, and that wait ``seconds``. ``instead``: part of an object's name ->
    statuses that it answers instead of the object, as long as there are any."""

    refused: float = 0.0
    unheard: float = 0.0
    slow: float = 0.0
    seconds: float = 0.2
    instead: dict[str, Iterator[int]] = field(default_factory=dict)
    happened: Counter[str] = field(default_factory=Counter)
    chance: random.Random = field(default_factory=lambda: random.Random(3))

    def before(self, app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
        """A WSGI application in this weather."""

        def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
            self.happened["requests"] += 1
            if self._falls("slow"):
                time.sleep(self.seconds)
            status = self._said_instead(environ["PATH_INFO"])
            if self._falls("unheard"):
                b"".join(app(environ, lambda *_: None))
            elif status is None and not self._falls("refused"):
                return app(environ, start)
            else:
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            reason = _REASONS.get(status or 503, "SlowDown")
            said = f"<?xml version='1.0'?><Error><Code>{reason}</Code></Error>".encode()
            start(f"{status or 503} {reason}", [("Content-Length", str(len(said)))])
            return [said]

        return answer

    def _said_instead(self, path: str) -> int | None:
        for name, statuses in self.instead.items():
            status = next(statuses, None) if name in path else None
            if status is not None:
                self.happened[str(status)] += 1
                return status
        return None

    def _falls(self, what: str) -> bool:
        falls = self.chance.random() < getattr(self, what)
        self.happened[what] += falls
        return falls


class _Silent(WSGIRequestHandler):
    def log(self, *_: object) -> None: ...


@contextmanager
def s3_bucket_in(weather: Weather) -> Iterator[str]:
    """As :func:`s3_bucket`, on a server that may be ill."""
    app = weather.before(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Silent)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        with _bucket(f"http://127.0.0.1:{server.server_port}") as url:
            yield url
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def _bucket(endpoint: str) -> Iterator[str]:
    with _environment(
        {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }
    ):
        # moto's buckets outlive its server
        name = f"national-map-{uuid.uuid4()}"
        boto3.client("s3").create_bucket(Bucket=name)
        yield f"s3://{name}"


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
