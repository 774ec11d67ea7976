"""RayJobs of one namespace, as the Kubernetes API server tells of them.

What passes (5xx, 429, lost connections, time-outs) is asked again, at growing intervals; what
does not is a StageError at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from terrafine.errors import StageError

Resource = Mapping[str, Any]
T = TypeVar("T")

_RAYJOBS = {"group": "ray.io", "version": "v1", "plural": "rayjobs"}
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
# 0: no HTTP answer at all
_PASSING = {0, 429, 500, 502, 503, 504}
_LONGEST_PAUSE = 30.0
_LINES = 500


class Retries(Protocol):
    """Told of every request that is made again."""

    def retried(self, cause: str) -> None:
        """It failed for this cause."""


class RayJobApi:
    """Create, read, adopt and delete RayJobs, and read what their drivers print.

    ``patience``: seconds for which one request is made again; ``timeout``: seconds to connect,
    and to wait for an answer; ``pause``: before the second try, doubled for each one after it.
    """

    def __init__(
        self,
        api: client.ApiClient,
        namespace: str,
        *,
        patience: float = 600,
        timeout: tuple[float, float] = (10, 30),
        pause: float = 1.0,
        observer: Retries | None = None,
    ) -> None:
        self.namespace = namespace
        self._objects = client.CustomObjectsApi(api)
        self._pods = client.CoreV1Api(api)
        self._patience, self._timeout, self._pause = patience, timeout, pause
        self._observer = observer

    @classmethod
    def connect(cls, *, observer: Retries | None = None) -> Self:
        """From inside a pod, else as kubectl would; StageError where neither is set up."""
        settings = client.Configuration()
        try:
            config.load_incluster_config(client_configuration=settings)
            namespace = _NAMESPACE_FILE.read_text().strip()
        except (config.ConfigException, OSError):
            # named here, as the client looks only once, when it is imported
            file = os.environ.get("KUBECONFIG") or None
            try:
                config.load_kube_config(file, client_configuration=settings)
                _, context = config.list_kube_config_contexts(file)
            except config.ConfigException as error:
                raise StageError(
                    f"no Kubernetes to launch a RayJob on ({error}): run in a pod with a "
                    "ServiceAccount token, set KUBECONFIG, or unset TERRAFINE_RAYJOBS to do the "
                    "stage in this process"
                ) from error
            namespace = context["context"].get("namespace", "default")
        settings.retries = False  # tried again here, where it is counted
        return cls(client.ApiClient(settings), namespace, observer=observer)

    def create(self, manifest: Resource) -> Resource | None:
        """Create a RayJob; None where one of its name is there."""
        found = self._call(
            "create", self._objects.create_namespaced_custom_object, body=manifest, passes=409
        )
        return _resource(found)

    def get(self, name: str, *, patience: float | None = None) -> Resource | None:
        """A RayJob as it is now, or None where there is none."""
        call = self._objects.get_namespaced_custom_object
        return _resource(self._call("read", call, name=name, passes=404, patience=patience))

    def adopt(self, found: Resource, owners: list[Resource]) -> None:
        """Let a RayJob go when these owners go, and no longer with those before."""
        name, uid = found["metadata"]["name"], found["metadata"]["uid"]
        change = {"metadata": {"uid": uid, "ownerReferences": owners}}
        self._call("adopt", self._objects.patch_namespaced_custom_object, name=name, body=change)

    def delete(self, found: Resource, *, patience: float | None = None) -> None:
        """Delete this RayJob and all that it made; one that is gone already is no error."""
        options = client.V1DeleteOptions(
            propagation_policy="Background",
            preconditions=client.V1Preconditions(uid=found["metadata"]["uid"]),
        )
        call, name = self._objects.delete_namespaced_custom_object, found["metadata"]["name"]
        # 409: another one has the name by now
        with contextlib.suppress(_Conflict):
            self._call("delete", call, name=name, body=options, passes=404, patience=patience)

    def log_lines(self, name: str) -> list[str]:
        """The last lines that the driver printed, each after its time; none where they cannot be
        read, which must stop nobody."""
        pods = self._pods
        with contextlib.suppress(ApiException, HTTPError, OSError):
            # the submitter, a Job of the same name, prints what the driver prints
            found = pods.list_namespaced_pod(
                self.namespace,
                label_selector=f"batch.kubernetes.io/job-name={name}",
                _request_timeout=self._timeout,
            ).items
            if found:
                newest = max(found, key=lambda pod: pod.metadata.creation_timestamp)
                text = pods.read_namespaced_pod_log(
                    newest.metadata.name,
                    self.namespace,
                    timestamps=True,
                    tail_lines=_LINES,
                    _preload_content=False,
                    _request_timeout=self._timeout,
                ).data
                return [str(line) for line in text.decode(errors="replace").splitlines()]
        return []

    def _call(
        self,
        verb: str,
        call: Callable[..., T],
        *,
        passes: int | None = None,
        patience: float | None = None,
        **arguments: Any,
    ) -> T | None:
        """Ask until there is an answer; None for the status that ``passes``."""
        patience = self._patience if patience is None else patience
        began, pause = time.monotonic(), self._pause
        while True:
            try:
                return call(
                    namespace=self.namespace,
                    _request_timeout=self._timeout,
                    **_RAYJOBS,
                    **arguments,
                )
            except ApiException as error:
                if error.status == passes:
                    return None
                if error.status not in _PASSING:
                    raise self._refused(verb, error) from error
                cause = f"status {error.status}"
            except (HTTPError, OSError) as error:
                cause = type(error).__name__
            if self._observer is not None:
                self._observer.retried(cause)
            if time.monotonic() + pause > began + patience:
                raise StageError(
                    f"the Kubernetes API server could not {verb} a RayJob in namespace "
                    f"{self.namespace} for {patience:.0f} s ({cause}); what runs there goes on: "
                    "run the same step again, and it follows the same RayJob"
                )
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _refused(self, verb: str, error: ApiException) -> StageError:
        said = _message(error)
        remedy = {
            401: "renew its token",
            403: "give its ServiceAccount the Role of k8s/base for RayJobs",
            404: "install KubeRay 1.7 or newer, and create the namespace",
            409: "look at what changed it, and run again",
            422: "correct the template",
        }.get(error.status, "correct it")
        kind = _Conflict if error.status == 409 else StageError
        return kind(
            f"the Kubernetes API server refuses to {verb} a RayJob in namespace {self.namespace} "
            f"({error.status} {said}); {remedy}"
        )


class _Conflict(StageError):
    """What was asked for does not fit what is there now."""


def _resource(found: object) -> Resource | None:
    if found is None:
        return None
    if not isinstance(found, Mapping) or "metadata" not in found:
        raise StageError(
            f"what answers is no Kubernetes API server ({str(found)[:80]!r}); correct KUBECONFIG "
            "or the proxy between"
        )
    return found


def _message(error: ApiException) -> str:
    """What the server said, without headers."""
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.reason)
