"""The kustomize component that fits an overlay, or an example, to a spec."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from terrafine.errors import SpecError, StageError
from terrafine.spec import MapSpec

GPU = "nvidia.com/gpu"
DATA = "/work/data"
WORKDIR = "/work/runs/{name}"
Resource = dict[str, Any]

_NAMESPACE = "terrafine"
_TEMPLATES = "terrafine-rayjobs"
_SERVING = "terrafine-serving"
_URL, _REPOSITORY = _AGREED = ("TERRAFINE_URL", "TERRAFINE_REPOSITORY")
_SPEC = "/spec/spec.yaml"
_WORKERS = "/spec/rayClusterSpec/workerGroupSpecs/0"
_POD = f"{_WORKERS}/template/spec"
_RUN_METRICS = "run-metrics"


@dataclass(frozen=True)
class Folders:
    """Data root and work directory on the shared volume; {name}: the spec's name."""

    data: str = DATA
    workdir: str = WORKDIR

    def options(self, spec: MapSpec) -> list[str]:
        """Of a command line."""
        return ["--data", self.data, "--workdir", self.workdir.replace("{name}", spec.name)]


def component_for(
    spec: MapSpec, overlaid: list[Resource], overlay: str, image: str | None = None
) -> Resource:
    """The kustomize component that fits an overlay's resources to a spec.

    ``image``: of terrafine; default: the overlay's own. Raises SpecError where the overlay cannot
    hold what the spec asks for, StageError where the image is not pinned.
    """
    templates = _templates(overlaid)
    jobs = {
        "train": _Sized(templates["train.yaml"], spec).for_training(),
        "prune": _Sized(templates["prune.yaml"], spec).for_training(),
        "map": _Sized(templates["map.yaml"], spec).for_mapping(templates["train.yaml"]),
    }
    queue = _one(overlaid, "ClusterQueue", "terrafine")
    for stage, job in jobs.items():
        job.check_queue(queue, f"{spec.name}: {stage} on overlay {overlay}")
    triton = _one(overlaid, "Deployment", "triton")
    return {
        "apiVersion": "kustomize.config.k8s.io/v1alpha1",
        "kind": "Component",
        "images": [] if image is None else [_pinned(image)],
        "configMapGenerator": [
            {
                "name": _SERVING,
                "namespace": _NAMESPACE,
                "behavior": "merge",
                "literals": list(_serving(spec)),
            },
            {
                "name": "terrafine-spec",
                "namespace": _NAMESPACE,
                "files": ["spec.yaml"],
                "options": {
                    "disableNameSuffixHash": True,
                    "labels": {"app.kubernetes.io/part-of": "terrafine"},
                },
            },
        ],
        "patches": [
            _patch("Deployment", "triton", list(_triton(spec, triton, overlay))),
            *(_patch("RayJob", f"terrafine-{name}", job.patch) for name, job in jobs.items()),
        ],
    }


def patches_for(
    example: list[Resource],
    spec: MapSpec,
    text: str,
    overlaid: list[Resource],
    folders: Folders,
) -> list[Resource]:
    """What fits one of k8s/examples to a spec, whose own YAML is ``text``; those that know no spec
    are left as they are."""
    found = {(one["kind"], one["metadata"]["name"]): one for one in example}
    if (job := found.get(("Job", "terrafine-deploy"))) is not None:
        return [_patch("Job", "terrafine-deploy", list(_deploy(job, spec, folders)))]
    if (job := found.get(("RayJob", "map-region"))) is not None:
        sized = _Sized(job, spec).for_mapping(_templates(overlaid)["train.yaml"])
        sized.check_queue(_one(overlaid, "ClusterQueue", "terrafine"), f"{spec.name}: map-region")
        words = ["terrafine", "--log-level", "info", "map", "run", _SPEC, *folders.options(spec)]
        command = {"op": "replace", "path": "/spec/entrypoint", "value": shlex.join(words)}
        own = {"op": "replace", "path": "/data/spec.yaml", "value": text}
        return [
            _patch("RayJob", "map-region", [*sized.patch, command]),
            _patch("ConfigMap", "map-region", [own]),
        ]
    return []


def _deploy(job: Resource, spec: MapSpec, folders: Folders) -> Iterator[Resource]:
    """The spec's own model, servers and repository, which the overlay was rendered with too."""
    pod, container = "/spec/template/spec", _container(job["spec"]["template"])
    given = {"configMapRef": {"name": _SERVING}}
    mount = {"name": "spec", "mountPath": str(Path(_SPEC).parent), "readOnly": True}
    folder = {"name": "spec", "configMap": {"name": "terrafine-spec"}}
    own = [one for one in container["env"] if one["name"] not in _AGREED]
    options = folders.options(spec)
    for path, value in (
        ("args", ["deploy", _SPEC, *options, "--promote"]),
        ("env", own),
        ("envFrom", [given, *container["envFrom"]]),
        ("volumeMounts", mounts := [*container["volumeMounts"], mount]),
    ):
        yield {"op": "replace", "path": f"{pod}/containers/0/{path}", "value": value}
    yield {"op": "add", "path": f"{pod}/volumes/-", "value": folder}
    if spec.champion is not None:
        adopt = {
            **container,
            "name": "adopt",
            "args": ["adopt", _SPEC, *options],
            "env": [one for one in own if "value" in one],
            "volumeMounts": mounts,
        }
        yield {"op": "add", "path": f"{pod}/initContainers", "value": [adopt]}


def _pinned(image: str) -> Resource:
    """What kustomize's ``images`` takes; StageError unless a tag or a digest says which it is."""
    path, _, digest = image.partition("@")
    folder, slash, name = path.rpartition("/")
    name, _, tag = name.partition(":")
    new = {"name": "terrafine", "newName": f"{folder}{slash}{name}"}
    if re.fullmatch("sha256:[0-9a-f]{64}", digest):
        return {**new, "digest": digest}
    if digest or tag in ("", "latest") or not name:
        raise StageError(
            f"image {image}: does not say which it is; give REGISTRY/NAME:TAG, other than latest, "
            "or REGISTRY/NAME@sha256:DIGEST"
        )
    return {**new, "newTag": tag}


class _Sized:
    """A RayJob template and what has to change in it."""

    def __init__(self, template: Resource, spec: MapSpec) -> None:
        self.patch: list[Resource] = []
        self._spec = spec
        self._job = template["spec"]
        self._cluster = self._job["rayClusterSpec"]
        self._group = self._cluster["workerGroupSpecs"][0]
        self._resources: Resource = _container(self._group["template"])["resources"]
        self._queued = "kueue.x-k8s.io/queue-name" in template["metadata"].get("labels", {})
        self._replicas = 0

    def for_training(self) -> _Sized:
        """Pods for ``training.workers``, each with its loaders, and its GPU where pods have any."""
        training = self._spec.training
        workers = training.workers
        least, most = (workers, workers) if isinstance(workers, int) else workers
        gpus = 0 if training.device == "cpu" else self._gpus()
        self._size(
            least, most, cpus=1 + training.loader_workers, gpus=gpus, what="training.loader_workers"
        )
        self._metrics(training.metrics_port)
        return self

    def for_mapping(self, train: Resource) -> _Sized:
        """Pods for ``map.workers``; those of ``train`` where each worker holds a network of its
        own on a GPU."""
        mapping = self._spec.map
        gpus = 0
        if mapping.predictor == "torch" and not self._gpus():
            self._like(train)
            gpus = self._gpus()
            if not gpus and mapping.workers > 1:
                raise SpecError(
                    f"{self._spec.name}: map.predictor torch takes a GPU for each of map.workers "
                    f"{mapping.workers}, and this overlay's pods have none; choose overlay gpu-16, "
                    "or predictor onnx, openvino or triton"
                )
        self._size(
            mapping.workers,
            mapping.workers,
            cpus=max(1, mapping.threads),
            gpus=gpus,
            what="map.threads",
        )
        self._metrics(mapping.metrics_port)
        return self

    def check_queue(self, queue: Resource, where: str) -> None:
        """SpecError where Kueue's queue could never admit it."""
        from kubernetes.utils.quantity import parse_quantity

        if not self._queued:
            return
        once = [
            _container(pod)["resources"]["requests"]
            for pod in (
                self._cluster["headGroupSpec"]["template"],
                self._job["submitterPodTemplate"],
            )
        ]
        for group in queue["spec"]["resourceGroups"]:
            for quota in (quota for flavor in group["flavors"] for quota in flavor["resources"]):
                name, has = quota["name"], parse_quantity(quota["nominalQuota"])
                each = parse_quantity(self._resources["requests"].get(name, 0))
                takes = sum(parse_quantity(pod.get(name, 0)) for pod in once)
                takes += self._replicas * each
                if takes > has:
                    raise SpecError(
                        f"{where}: takes {takes} of {name}, more than the {quota['nominalQuota']} "
                        "of ClusterQueue terrafine, so it would wait for ever; ask for fewer "
                        "workers, or patch the quota in an overlay of your own"
                    )

    def _size(self, least: int, most: int, *, cpus: int, gpus: int, what: str) -> None:
        from kubernetes.utils.quantity import parse_quantity

        has = int(parse_quantity(self._resources["limits"]["cpu"]))
        if cpus > has:
            raise SpecError(
                f"{self._spec.name}: a worker takes {cpus} CPUs, the overlay's pods have {has}; "
                f"lower {what}, or give the pods more in an overlay of your own"
            )
        each = min(gpus, has // cpus) if gpus else has // cpus
        self._replicas = math.ceil(most / each)
        low = math.ceil(least / each)
        if self._cluster.get("enableInTreeAutoscaling"):
            low = min(int(self._group["minReplicas"]), self._replicas)
            self._replace("replicas", low, most=self._replicas, least=low)
        else:
            self._replace("replicas", self._replicas, most=self._replicas, least=low)
        if gpus:
            self._take_gpus(min(each, most))
        # one worker is the driver itself, which must run where the processors and GPUs are
        self._set("/spec/entrypointNumCpus", cpus if most == 1 else None)
        self._set("/spec/entrypointNumGpus", 1 if most == 1 and gpus else None)

    def _replace(self, key: str, value: int, *, least: int, most: int) -> None:
        for name, count in ((key, value), ("minReplicas", least), ("maxReplicas", most)):
            self.patch.append({"op": "replace", "path": f"{_WORKERS}/{name}", "value": count})

    def _set(self, path: str, value: int | None) -> None:
        if value is not None:
            self.patch.append({"op": "add", "path": path, "value": value})
        elif path.rpartition("/")[2] in self._job:
            self.patch.append({"op": "remove", "path": path})

    def _gpus(self) -> int:
        return int(self._resources["limits"].get(GPU, 0))

    def _take_gpus(self, count: int) -> None:
        wanted = {kind: {**given, GPU: str(count)} for kind, given in self._resources.items()}
        self._resources = wanted
        path = f"{_POD}/containers/0/resources"
        self.patch.append({"op": "replace", "path": path, "value": wanted})

    def _like(self, train: Resource) -> None:
        """Pods as those that train."""
        pod = train["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]
        self._resources = _container(pod)["resources"]
        for key in ("nodeSelector", "tolerations"):
            if key in pod["spec"]:
                value = pod["spec"][key]
                self.patch.append({"op": "add", "path": f"{_POD}/{key}", "value": value})

    def _metrics(self, port: int | None) -> None:
        """The port that Prometheus reads is the one that the run serves on."""
        if port is None:
            return
        for path, pod in (
            ("/spec/rayClusterSpec/headGroupSpec", self._cluster["headGroupSpec"]["template"]),
            (_WORKERS, self._group["template"]),
        ):
            names = [one["name"] for one in _container(pod)["ports"]]
            where = f"{path}/template/spec/containers/0/ports/{names.index(_RUN_METRICS)}"
            self.patch.append({"op": "replace", "path": f"{where}/containerPort", "value": port})


def _serving(spec: MapSpec) -> Iterator[str]:
    """What servers, their watch and deploys have to agree on."""
    yield f"MODEL_NAME={spec.serve.name}"
    if spec.serve.server is not None:
        yield f"{_URL}={spec.serve.server}"
    place = spec.serve.repository
    if place is None:
        return
    if "://" not in place and not Path(place).is_relative_to("/work"):
        raise SpecError(
            f"{spec.name}: serve.repository {place}: pods see no folder but /work; put it there, "
            "or into an object store (s3://bucket/folder)"
        )
    yield f"{_REPOSITORY}={place}"
    yield f"TRITON_REPOSITORY={place}"


def _triton(spec: MapSpec, deployment: Resource, overlay: str) -> Iterator[Resource]:
    """The probe on the model, where engines are kept, and its GPU or none."""
    container = _container(deployment["spec"]["template"])
    path = "/spec/template/spec/containers/0"
    yield {
        "op": "replace",
        "path": f"{path}/readinessProbe/httpGet/path",
        "value": f"/v2/models/{spec.serve.name}/ready",
    }
    place = spec.serve.repository
    mounts = [mount["name"] for mount in container["volumeMounts"]]
    if place is not None and "://" not in place and "work" not in mounts:
        raise SpecError(
            f"{spec.name}: serve.repository {place}: the model servers of overlay {overlay} see no "
            "volume; put it into the object store (s3://bucket/folder), or choose another overlay"
        )
    yield {
        "op": "replace",
        "path": f"{path}/volumeMounts/{mounts.index('engines')}/mountPath",
        "value": spec.serve.engine_cache,
    }
    resources = container["resources"]
    has = GPU in resources["limits"]
    if not has and (spec.serve.device == "gpu" or spec.serve.tensorrt):
        raise SpecError(
            f"{spec.name}: serve.device {spec.serve.device} and serve.tensorrt "
            f"{spec.serve.tensorrt} need a GPU, which overlay {overlay} does not give the model "
            "servers; choose overlay gpu-16, or leave them out"
        )
    if has and spec.serve.device == "cpu":
        without = {
            kind: {name: amount for name, amount in given.items() if name != GPU}
            for kind, given in resources.items()
        }
        yield {"op": "replace", "path": f"{path}/resources", "value": without}


def _templates(overlaid: list[Resource]) -> dict[str, Resource]:
    return {
        name: yaml.safe_load(text)
        for name, text in _one(overlaid, "ConfigMap", _TEMPLATES)["data"].items()
        if name.endswith(".yaml")
    }


def _container(template: Mapping[str, Any]) -> Resource:
    found: Resource = template["spec"]["containers"][0]
    return found


def _one(resources: list[Resource], kind: str, name: str) -> Resource:
    for found in resources:
        if found["kind"] == kind and found["metadata"]["name"] == name:
            return found
    raise StageError(
        f"the overlay holds no {kind} {name}, which every overlay of terrafine has; build it on "
        "k8s/base"
    )


def _patch(kind: str, name: str, operations: list[Resource]) -> Resource:
    return {"target": {"kind": kind, "name": name}, "patch": yaml.safe_dump(operations)}
