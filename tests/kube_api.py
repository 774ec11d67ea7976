"""A Kubernetes API server for tests: real HTTP, the RayJobs and pods of one namespace, and faults.

It answers as the real one does (409 for a taken name, 422 for what the CRD's schema refuses,
uid preconditions, merge patches). What the operator would do, tests do: they set ``status``.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from tests.kube_schemas import schema_complaints

NAMESPACE = "maps"
_JOBS = f"/apis/ray.io/v1/namespaces/{NAMESPACE}/rayjobs"
_PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
_HANGS = 2.0

RayJob = dict[str, Any]
_EMPTY: RayJob = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {}, "spec": {}}


@dataclass
class Fault:
    """How the next ``times`` requests of a method fare: a status, "reset", "cut" or "hang"."""

    method: str
    kind: int | str
    times: int
    done: bool = False
    """whether the server did what was asked, and only its answer is lost"""


@dataclass
class KubeApi:
    """What the server holds; tests read and change it while it runs."""

    url: str = ""
    jobs: dict[str, RayJob] = field(default_factory=dict)
    script: list[dict[str, Any]] = field(default_factory=list)
    """statuses that a RayJob takes, one at each look, and keeps the last"""
    lines: list[str] = field(default_factory=list)
    """printed by the submitter's pod, each begun with its time"""
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    created: list[RayJob] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    looks_to_go: int = 0
    """of a deleted RayJob that a finalizer keeps"""
    on_create: Callable[[RayJob], None] = lambda job: None

    def kubeconfig(self, folder: Path) -> Path:
        """A file for KUBECONFIG."""
        path = folder / "kubeconfig"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": self.url}}],
            "users": [{"name": "test", "user": {"token": "not-a-secret"}}],
            "contexts": [
                {
                    "name": "test",
                    "context": {"cluster": "test", "user": "test", "namespace": NAMESPACE},
                }
            ],
        }
        path.write_text(yaml.safe_dump(config))
        return path

    def fault(self, method: str) -> Fault | None:
        """The fault that the next request of a method meets."""
        for fault in self.faults:
            if fault.method == method and fault.times > 0:
                fault.times -= 1
                return fault
        return None

    def create(self, body: RayJob) -> tuple[int, Any]:
        """What POST does."""
        body["metadata"]["namespace"] = NAMESPACE
        problem = _problem(body)
        if problem:
            return _said(422, "Invalid", f"RayJob is invalid: {problem}")
        name = body["metadata"]["name"]
        if name in self.jobs:
            return _said(409, "AlreadyExists", f'rayjobs.ray.io "{name}" already exists')
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        body["metadata"] |= {"uid": str(uuid.uuid4()), "creationTimestamp": now}
        self.jobs[name] = body
        self.created.append(body)
        self.on_create(body)
        return 201, body

    def look(self, name: str) -> tuple[int, Any]:
        """What GET does; the operator's work goes on at each look."""
        job = self.jobs.get(name)
        if job is None:
            return _said(404, "NotFound", f'rayjobs.ray.io "{name}" not found')
        if "deletionTimestamp" in job["metadata"]:
            self.looks_to_go -= 1
            if self.looks_to_go < 0:
                del self.jobs[name]
        elif self.script:
            job["status"] = self.script.pop(0)
        return 200, job

    def remove(self, name: str, options: dict[str, Any]) -> tuple[int, Any]:
        """What DELETE does."""
        job = self.jobs.get(name)
        if job is None:
            return _said(404, "NotFound", f'rayjobs.ray.io "{name}" not found')
        wanted = (options.get("preconditions") or {}).get("uid")
        if wanted not in (None, job["metadata"]["uid"]):
            return _said(409, "Conflict", "the UID in the precondition differs")
        self.deleted.append(job["metadata"]["uid"])
        if self.looks_to_go:
            job["metadata"]["deletionTimestamp"] = job["metadata"]["creationTimestamp"]
        else:
            del self.jobs[name]
        return 200, {"kind": "Status", "status": "Success", "metadata": {}}

    def patch(self, name: str, change: RayJob) -> tuple[int, Any]:
        """What PATCH does with a merge patch of the metadata."""
        metadata = self.jobs[name]["metadata"]
        if change["metadata"].get("uid") not in (None, metadata["uid"]):
            return _said(409, "Conflict", "the UID in the precondition differs")
        metadata |= change["metadata"]
        return 200, self.jobs[name]

    def pods(self, selector: str) -> Any:
        """The submitter's pod, where the RayJob asked for is there and printed something."""
        name = selector.removeprefix("batch.kubernetes.io/job-name=")
        there = self.lines and name in self.jobs
        created = "2026-01-01T00:00:00Z"
        metadata = {"name": f"{name}-abcde", "creationTimestamp": created}
        return {"kind": "PodList", "items": [{"metadata": metadata}] if there else []}


def _said(status: int, reason: str, message: str) -> tuple[int, Any]:
    body = {"kind": "Status", "status": "Failure", "reason": reason, "message": message}
    return status, {**body, "code": status, "metadata": {}}


def _problem(body: RayJob) -> str:
    if (body.get("apiVersion"), body.get("kind")) != ("ray.io/v1", "RayJob"):
        return "not a ray.io/v1 RayJob"
    name = str(body["metadata"].get("name"))
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name) or len(name) > 63:
        return f"metadata.name {name!r} is no DNS-1123 label"
    for owner in body["metadata"].get("ownerReferences", []):
        if owner.keys() < {"apiVersion", "kind", "name", "uid"}:
            return "metadata.ownerReferences: incomplete"
    return "; ".join(schema_complaints(body))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: KubeApi

    def do_GET(self) -> None:
        self._handle("GET")

    def do_POST(self) -> None:
        self._handle("POST")

    def do_PATCH(self) -> None:
        self._handle("PATCH")

    def do_DELETE(self) -> None:
        self._handle("DELETE")

    def log_message(self, *_: object) -> None:
        pass

    def _handle(self, method: str) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"{}")
        path = urlsplit(self.path).path
        self.api.requests.append(f"{method} {path}")
        fault = self.api.fault(method) if path.startswith(_JOBS) else None
        if fault is None or fault.done:
            status, said = self._answer(method, path, body)
        if fault is None:
            self._send(status, said)
        elif isinstance(fault.kind, int):
            self._send(*_said(fault.kind, "Unwell", "the API server is unwell"))
        else:
            self._spoil(fault.kind)

    def _answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        query = parse_qs(urlsplit(self.path).query)
        if path == _PODS:
            return 200, self.api.pods(query["labelSelector"][0])
        if path.startswith(_PODS):
            return 200, "".join(f"{line}\n" for line in self.api.lines)
        if not path.startswith(_JOBS):
            return _said(404, "NotFound", "404 page not found")
        name = path.removeprefix(_JOBS).strip("/")
        if method == "POST":
            return self.api.create(body)
        if method == "DELETE":
            return self.api.remove(name, body)
        if method == "PATCH":
            if self.headers["Content-Type"] != "application/merge-patch+json":
                return _said(415, "UnsupportedMediaType", "a merge patch is wanted")
            return self.api.patch(name, body)
        return self.api.look(name)

    def _send(self, status: int, said: Any) -> None:
        data = said.encode() if isinstance(said, str) else json.dumps(said).encode()
        self.send_response(status)
        kind = "text/plain" if isinstance(said, str) else "application/json"
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _spoil(self, kind: str) -> None:
        if kind == "hang":
            time.sleep(_HANGS)
        elif kind == "cut":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{")
        else:  # RST
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that a test spoilt is no news."""


@contextmanager
def kube_api() -> Iterator[KubeApi]:
    """The server, on a port of its own."""
    list(schema_complaints(_EMPTY))  # reads a megabyte: now, and not while a client waits
    api = KubeApi()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"api": api}))
    api.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
