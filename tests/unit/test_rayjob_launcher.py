"""A RayJob is created once, found again, followed to its end, and never left behind unnoticed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client
from prometheus_client import CollectorRegistry

from serving.rayjob.api import RayJobApi
from serving.rayjob.launcher import RayJobResult, run_rayjob
from serving.rayjob.template import DIGEST, Order, filled
from terrafine.errors import StageError
from terrafine.telemetry import RayJobMetrics
from tests.kube_api import NAMESPACE, Fault, KubeApi, kube_api

WAITING = {"jobDeploymentStatus": "Suspended"}
STARTING = {"jobDeploymentStatus": "Initializing"}
RUNNING = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
SUCCEEDED = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
FAILED = {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed"}
OWNER = {"apiVersion": "v1", "kind": "Pod", "name": "kfp-pod", "uid": "11-22"}
POD = {"containers": [{"name": "ray-head", "image": "terrafine:0.1.0"}]}
TEMPLATE: dict[str, Any] = {
    "apiVersion": "ray.io/v1",
    "kind": "RayJob",
    "metadata": {"name": "terrafine-map", "labels": {"kueue.x-k8s.io/queue-name": "terrafine"}},
    "spec": {
        "entrypoint": "replaced",
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 600,
        "rayClusterSpec": {
            "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": {"spec": POD}}
        },
    },
}
ORDER = Order("map", "name: generated\n", "/work/data", "/work/runs/a", "8c2f3f9e-0000")
MANIFEST = filled(TEMPLATE, ORDER, [OWNER])


@pytest.fixture
def server() -> Iterator[KubeApi]:
    with kube_api() as api:
        yield api


def connected(server: KubeApi, **options: Any) -> RayJobApi:
    settings = client.Configuration(host=server.url)
    settings.retries = False
    return RayJobApi(client.ApiClient(settings), NAMESPACE, **{"pause": 0.02, **options})


def launch(
    server: KubeApi, *, deadline: float = 60, manifest: Any = MANIFEST, **options: Any
) -> tuple[RayJobResult, list[str]]:
    said: list[str] = []
    api = connected(server, **options)
    return run_rayjob(api, manifest, deadline=deadline, log=said.append, every=0.02), said


def test_a_rayjob_is_created_and_followed_to_its_success(server: KubeApi) -> None:
    server.script = [WAITING, STARTING, RUNNING, RUNNING, SUCCEEDED]
    result, said = launch(server)
    assert (result.name, result.status) == (ORDER.name, "SUCCEEDED")
    states = [line.removeprefix(f"RayJob {ORDER.name}: ") for line in said[1:]]
    assert states == [
        "Suspended (waits in its queue)",
        "Initializing",
        "Running RUNNING",
        "Complete SUCCEEDED",
    ]
    (made,) = server.created
    assert made["metadata"]["ownerReferences"] == [OWNER]
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "terrafine"
    assert made["spec"]["entrypoint"] == ORDER.entrypoint
    assert server.deleted == []


def test_what_the_schema_of_the_resource_refuses_is_said_as_the_server_said_it(
    server: KubeApi,
) -> None:
    if not (Path(__file__).parents[3] / "shared" / "crds").is_dir():
        pytest.skip("../shared/crds is not here: the RayJob's schema is not enforced")
    spec = {**TEMPLATE["spec"], "shutDownAfterJobFinishes": True}
    with pytest.raises(StageError, match=r"422 .*shutDownAfterJobFinishes.*correct the template"):
        launch(server, manifest=filled({**TEMPLATE, "spec": spec}, ORDER, []))
    assert server.jobs == {}


def test_the_drivers_lines_are_printed_once_each(server: KubeApi) -> None:
    server.script = [RUNNING] * 3
    server.lines = ["2026-01-01T00:00:01.000000000Z first"]

    def go_on() -> None:
        while server.script:
            time.sleep(0.01)
        server.lines += ["2026-01-01T00:00:01.000000001Z second", "2026-01-01T00:00:02.1Z third"]
        server.script = [RUNNING, RUNNING, SUCCEEDED]

    thread = threading.Thread(target=go_on)
    thread.start()
    _, said = launch(server)
    thread.join()
    assert [line for line in said if line in ("first", "second", "third")] == [
        "first",
        "second",
        "third",
    ]


def test_a_restarted_pod_follows_the_rayjob_of_the_one_before_and_adopts_it(
    server: KubeApi,
) -> None:
    server.create(filled(TEMPLATE, ORDER, [{**OWNER, "name": "dead-pod", "uid": "00"}]))
    server.script = [RUNNING, SUCCEEDED]
    _, said = launch(server)
    assert len(server.created) == 1
    assert said[0].endswith("attached")
    assert server.jobs[ORDER.name]["metadata"]["ownerReferences"] == [OWNER]


def test_one_that_succeeded_meanwhile_is_not_done_again(server: KubeApi) -> None:
    server.create(filled(TEMPLATE, ORDER, []))
    server.script = [SUCCEEDED]
    launch(server)
    assert len(server.created) == 1


@pytest.mark.parametrize("looks_to_go", [0, 3])
def test_one_that_failed_before_is_replaced(server: KubeApi, looks_to_go: int) -> None:
    server.create(filled(TEMPLATE, ORDER, []))
    server.looks_to_go = looks_to_go
    server.script = [FAILED]
    first = server.created[0]["metadata"]["uid"]
    server.on_create = lambda job: server.script.extend([RUNNING, SUCCEEDED])
    _, said = launch(server)
    assert server.deleted == [first]
    assert len(server.created) == 2
    assert said[1].endswith("replaced")


def test_another_order_of_the_same_name_is_left_alone(server: KubeApi) -> None:
    other = filled(TEMPLATE, ORDER, [])
    other["metadata"]["labels"][DIGEST] = "somebody-else"
    server.create(other)
    with pytest.raises(StageError, match=f"{ORDER.name}.*another order.*somebody-else"):
        launch(server)
    assert server.deleted == []


@pytest.mark.parametrize("kind", [429, 500, 503, "reset", "cut", "hang"])
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_an_api_server_that_is_unwell_is_asked_again(
    server: KubeApi, method: str, kind: int | str
) -> None:
    server.faults = [Fault(method, kind, 1 if kind == "hang" else 3)]
    server.script = [RUNNING, SUCCEEDED]
    result, _ = launch(server, timeout=(10, 1) if kind == "hang" else (10, 30))
    assert result.status == "SUCCEEDED"
    assert len(server.created) == 1


@pytest.mark.parametrize("kind", ["reset", "hang", 500])
def test_a_creation_whose_answer_is_lost_creates_nothing_twice(
    server: KubeApi, kind: int | str
) -> None:
    server.faults = [Fault("POST", kind, 1, done=True)]
    server.script = [RUNNING, SUCCEEDED]
    _, said = launch(server, timeout=(10, 1) if kind == "hang" else (10, 30))
    assert len(server.created) == 1
    assert said[0].endswith("attached")


def test_an_api_server_that_stays_away_leaves_the_rayjob_running(server: KubeApi) -> None:
    server.script = [RUNNING]
    server.faults = [Fault("GET", 503, 10**6)]
    with pytest.raises(StageError, match=r"could not read a RayJob .* goes on"):
        launch(server, patience=0.2)
    assert ORDER.name in server.jobs


@pytest.mark.parametrize(("status", "says"), [(401, "renew its token"), (403, "Role")])
def test_what_will_not_pass_is_not_asked_again(server: KubeApi, status: int, says: str) -> None:
    server.faults = [Fault("POST", status, 10**6)]
    with pytest.raises(StageError, match=f"{status}.*{says}"):
        launch(server)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (FAILED, "Failed FAILED AppFailed"),
        ({**FAILED, "message": "...\nerror: map.server: nobody\nbye"}, ": map.server: nobody$"),
        ({"jobDeploymentStatus": "ValidationFailed", "message": "name too long"}, "name too long"),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, "stopped by somebody"),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "FAILED"}, "Complete FAILED"),
        ({"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded"}, "DeadlineExceeded"),
        ({"jobDeploymentStatus": "Complete"}, "did not succeed"),
    ],
)
def test_every_end_but_success_is_a_failure_with_the_jobs_reason(
    server: KubeApi, status: dict[str, str], says: str
) -> None:
    server.script = [RUNNING, status]
    with pytest.raises(StageError, match=says):
        launch(server)
    assert server.deleted == [], "kept for whoever looks into it, until its TTL"


def test_the_reason_is_the_command_lines_own_sentence_from_the_log(server: KubeApi) -> None:
    server.lines = [
        "2026-01-01T00:00:01.000000000Z error: scene.tif: cannot be read; mount the data",
        "2026-01-01T00:00:02.000000000Z Job 'x' failed",
    ]
    server.script = [RUNNING, FAILED]
    with pytest.raises(StageError, match=r"AppFailed: scene\.tif: cannot be read; mount the data"):
        launch(server)


def test_a_rayjob_deleted_under_its_feet_is_an_error(server: KubeApi) -> None:
    server.script = [RUNNING]
    threading.Timer(0.2, lambda: server.jobs.clear()).start()
    with pytest.raises(StageError, match="was deleted while it ran"):
        launch(server)


def test_a_rayjob_exchanged_under_its_feet_is_an_error(server: KubeApi) -> None:
    server.script = [RUNNING]

    def exchange() -> None:
        server.jobs.clear()
        server.create(filled(TEMPLATE, ORDER, []))

    threading.Timer(0.2, exchange).start()
    with pytest.raises(StageError, match="was deleted while it ran"):
        launch(server)
    assert server.deleted == []


def test_after_the_deadline_the_rayjob_is_deleted(server: KubeApi) -> None:
    server.script = [WAITING]
    with pytest.raises(StageError, match=r"not done after 1 s \(Suspended\).*deadline-seconds"):
        launch(server, deadline=1)
    assert server.jobs == {}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_launcher_that_is_told_to_stop_deletes_its_rayjob(
    server: KubeApi, tmp_path: Path, number: signal.Signals
) -> None:
    server.script = [RUNNING]
    running = started(server, tmp_path)
    running.send_signal(number)
    assert running.wait(20) != 0
    assert server.jobs == {}


def test_a_launcher_that_is_killed_leaves_its_rayjob_to_the_next(
    server: KubeApi, tmp_path: Path
) -> None:
    server.script = [RUNNING]
    running = started(server, tmp_path)
    running.kill()
    running.wait(20)
    server.script = [RUNNING, SUCCEEDED]
    _, said = launch(server)
    assert said[0].endswith("attached")
    assert len(server.created) == 1


# a shell has what it starts in the background ignore SIGINT, and that is inherited
LAUNCHER = """
import json, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from serving.rayjob.api import RayJobApi
from serving.rayjob.launcher import run_rayjob
run_rayjob(RayJobApi.connect(), json.loads(sys.argv[1]), deadline=60, log=print, every=0.05)
"""


def started(server: KubeApi, folder: Path) -> subprocess.Popen[bytes]:
    """A launcher in a process of its own, as kubectl is configured, that follows its RayJob."""
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, json.dumps(MANIFEST)],
        env={**os.environ, "KUBECONFIG": str(server.kubeconfig(folder))},
        stdout=subprocess.DEVNULL,
        cwd=Path(__file__).parents[2],
    )
    until = time.monotonic() + 30
    while sum(request.startswith("GET") for request in server.requests) < 4:
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    return process


def test_what_the_launcher_sees_is_measured(server: KubeApi) -> None:
    registry = CollectorRegistry()
    metrics = RayJobMetrics(registry=registry)
    api = connected(server, observer=metrics)
    server.faults = [Fault("GET", 503, 2)]
    server.script = [WAITING, RUNNING, SUCCEEDED]
    run_rayjob(api, MANIFEST, deadline=60, log=lambda line: None, observer=metrics, every=0.02)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"terrafine_rayjob_{name}", labels)

    assert value("launched_total", stage="map", how="created") == 1
    assert value("api_retries_total", cause="status 503") == 2
    assert value("seconds", stage="map", status="Complete") is not None
    assert value("seconds", stage="map", status="Running") is None
