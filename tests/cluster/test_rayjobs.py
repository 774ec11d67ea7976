"""The launcher against a real API server with KubeRay's CRDs: what only a real one enforces.

The RayJobs are given to a controller that is not there (``managedBy``), so that no operator starts
a Ray cluster; their status is set by the test.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from serving.rayjob.api import RayJobApi
from serving.rayjob.launcher import run_rayjob
from serving.rayjob.template import Order, filled
from terrafine.errors import StageError
from tests.unit.test_rayjob_launcher import FAILED, RUNNING, SUCCEEDED, TEMPLATE

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(
        not os.environ.get("KUBECONFIG"),
        reason="KUBECONFIG is unset: the launcher is not tested on a real cluster",
    ),
]
RAYJOBS = {"group": "ray.io", "version": "v1", "plural": "rayjobs"}


class Cluster:
    """A namespace's RayJobs, seen and changed beside the launcher."""

    def __init__(self) -> None:
        self.api = RayJobApi.connect()
        config.load_kube_config(os.environ["KUBECONFIG"])
        self.objects, self.core = client.CustomObjectsApi(), client.CoreV1Api()
        self.order = Order("map", "name: a\n", "/work/data", "/work/runs/a", uuid.uuid4().hex)
        self.place = {**RAYJOBS, "namespace": self.api.namespace}

    def manifest(self, *owners: Any) -> Any:
        spec = {**TEMPLATE["spec"], "managedBy": "kueue.x-k8s.io/multikueue"}
        return filled({**TEMPLATE, "metadata": {}, "spec": spec}, self.order, owners)

    def play(self, *statuses: dict[str, str]) -> None:
        """Give the RayJob these statuses, one after the other, once it is there."""

        def run() -> None:
            for status in statuses:
                for _ in range(100):
                    time.sleep(0.3)
                    try:
                        self.objects.patch_namespaced_custom_object_status(
                            **self.place, name=self.order.name, body={"status": status}
                        )
                        break
                    except ApiException as error:
                        if error.status != 404:
                            raise

        threading.Thread(target=run, daemon=True).start()

    def launch(self, *owners: Any) -> list[str]:
        said: list[str] = []
        run_rayjob(self.api, self.manifest(*owners), deadline=60, log=said.append, every=0.5)
        return said


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    try:
        made.objects.list_namespaced_custom_object(**made.place)
    except ApiException as error:
        pytest.skip(f"the cluster has no RayJobs that may be listed ({error.status})")
    yield made
    found = made.api.get(made.order.name)
    if found is not None:
        made.api.delete(found)


def test_created_and_followed(cluster: Cluster) -> None:
    cluster.play(RUNNING, SUCCEEDED)
    said = cluster.launch()
    assert said[0].endswith("created")
    assert said[-1].endswith("Complete SUCCEEDED")
    assert cluster.launch()[0].endswith("attached"), "done, and found done"


def test_one_that_failed_is_replaced(cluster: Cluster) -> None:
    cluster.play(FAILED)
    with pytest.raises(StageError, match="AppFailed"):
        cluster.launch()
    before = cluster.api.get(cluster.order.name)
    assert before is not None
    cluster.play(RUNNING, SUCCEEDED)
    cluster.launch()
    after = cluster.api.get(cluster.order.name)
    assert after is not None
    assert after["metadata"]["uid"] != before["metadata"]["uid"]


def test_it_goes_with_its_owner_and_the_launcher_says_so(cluster: Cluster) -> None:
    name, namespace = cluster.order.name, cluster.api.namespace
    made = cluster.core.create_namespaced_config_map(
        namespace, client.V1ConfigMap(metadata=client.V1ObjectMeta(name=name))
    )
    first = {"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": made.metadata.uid}
    assert cluster.api.create(cluster.manifest()) is not None
    # adopted by then
    threading.Timer(3, cluster.core.delete_namespaced_config_map, (name, namespace)).start()
    with pytest.raises(StageError, match="was deleted while it ran"):
        cluster.launch(first)


def test_what_the_api_server_refuses_is_said(cluster: Cluster) -> None:
    manifest = cluster.manifest()
    manifest["spec"]["rayClusterSpec"] = {"headGroupSpec": {"template": {"spec": {}}}}
    with pytest.raises(StageError, match="refuses to create"):
        run_rayjob(cluster.api, manifest, deadline=10)
