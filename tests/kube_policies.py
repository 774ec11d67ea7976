"""What must hold of every manifest of terrafine, beyond what a schema can say.

Each check yields sentences; a set that may be applied has none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from kubernetes.utils.quantity import parse_quantity

from tests.kube_schemas import Resource, schema_complaints

NAMESPACE = "terrafine"
# what belongs elsewhere
NAMESPACES = {"Pipeline": "kubeflow", "PipelineVersion": "kubeflow"}
# what tells leftovers of an overlay from the rest
PART_OF = "app.kubernetes.io/part-of"
TEMPLATES = "terrafine-rayjobs"
CLUSTER_SCOPED = {
    "Namespace", "PriorityClass", "ResourceFlavor", "ClusterQueue", "WorkloadPriorityClass",
}  # fmt: skip
# pods that others make in the namespace
FOREIGN_LABELS = [
    {"workflows.argoproj.io/workflow": "a pipeline's", "terrafine.io/launcher": "true"},
    {"app.kubernetes.io/name": "terrafine-job"},  # of k8s/examples
]
# may speak to the API server: Ray's autoscaler
WITH_TOKEN = {"terrafine-ray-autoscaled"}
_SECRET_NAME = re.compile(r"(KEY|SECRET|TOKEN|PASSWORD|CREDENTIAL)", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"AKIA[0-9A-Z]{16}|-----BEGIN|admin-key=(?!\$\()\w|://[^/\s]+:[^/\s]+@")


@dataclass(frozen=True)
class Pod:
    """A pod's template, the labels that the running pod has, and where it is written."""

    where: str
    labels: Mapping[str, str]
    spec: Mapping[str, Any]

    @property
    def containers(self) -> list[Resource]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    def port_names(self) -> set[str]:
        return {p.get("name", "") for c in self.spec["containers"] for p in c.get("ports", [])}


def with_templates(resources: list[Resource]) -> list[Resource]:
    """The resources, and the RayJobs that the launcher will make of the templates among them."""
    made = [
        yaml.load(text, Loader=yaml.CSafeLoader)
        for found in resources
        if found["kind"] == "ConfigMap" and found["metadata"]["name"] == TEMPLATES
        for name, text in found["data"].items()
        if name.endswith(".yaml")
    ]
    for job in made:
        job["metadata"]["namespace"] = NAMESPACE
    return [*resources, *made]


def complaints(applied: list[Resource], documented: str) -> list[str]:
    """All that is wrong with a set; ``documented``: the page that names what users make."""
    resources = with_templates(applied)
    found = [
        f"{resource['kind']} {resource['metadata'].get('name')}: {said}"
        for resource in resources
        for check in (schema_complaints, metadata_complaints, _secrets, _rights, _numbers, _queued)
        for said in check(resource)
    ]
    pods = [pod for resource in resources for pod in pods_of(resource)]
    found += [f"{p.where}: {said}" for p in pods for check in POD_CHECKS for said in check(p)]
    found += [
        said
        for check in (_selectors, _ports, _deny, _twice, _probes)
        for said in check(resources, pods)
    ]
    return [*found, *_references(resources, pods, documented)]


def pods_of(resource: Resource) -> Iterator[Pod]:
    """Every pod that a resource makes."""
    name, spec = f"{resource['kind']} {resource['metadata'].get('name')}", resource.get("spec", {})
    if resource["kind"] == "Pod":
        yield Pod(name, resource["metadata"].get("labels", {}), spec)
    if resource["kind"] in {"Deployment", "Job"}:
        yield _pod(name, spec["template"], {})
    if resource["kind"] == "RayJob":
        cluster = spec["rayClusterSpec"]
        yield _pod(f"{name} submitter", spec["submitterPodTemplate"], {})
        ray = {"ray.io/is-ray-node": "yes"}  # which KubeRay adds
        head = {**ray, "ray.io/node-type": "head"}
        yield _pod(f"{name} head", cluster["headGroupSpec"]["template"], head)
        for group in cluster["workerGroupSpecs"]:
            labels = {**ray, "ray.io/node-type": "worker"}
            yield _pod(f"{name} {group['groupName']}", group["template"], labels)


def _pod(where: str, template: Resource, labels: Mapping[str, str]) -> Pod:
    given = template.get("metadata", {}).get("labels", {})
    return Pod(where, {**given, **labels}, template["spec"])


def metadata_complaints(resource: Resource) -> Iterator[str]:
    """Whose it is: namespace, label, version."""
    meta, scoped = resource["metadata"], resource["kind"] not in CLUSTER_SCOPED
    if scoped and meta.get("namespace") != NAMESPACES.get(resource["kind"], NAMESPACE):
        yield f"namespace {meta.get('namespace')}"
    if not scoped and "namespace" in meta:
        yield "has a namespace, but belongs to the cluster"
    # what users run lives on when an overlay is cleared away
    if meta.get("labels", {}).get(PART_OF) not in ("terrafine", "terrafine-runs"):
        yield "does not say that it is part of terrafine, so that it could not be pruned"
    if any(version in resource["apiVersion"] for version in ("v1beta1", "v2beta2")):
        yield f"deprecated {resource['apiVersion']}"


def _secrets(resource: Resource) -> Iterator[str]:
    if resource["kind"] == "Secret":
        yield "a secret is written into the manifests"
    if _SECRET_VALUE.search(json.dumps(resource, default=str)):
        yield "looks like a secret in plain text"


def _rights(resource: Resource) -> Iterator[str]:
    for rule in resource.get("rules", []) if resource["kind"].endswith("Role") else []:
        if "*" in [*rule["verbs"], *rule["resources"], *rule["apiGroups"]]:
            yield "a role with a wildcard"
        # one secret by its name may be read, as Kubeflow asks
        named = rule.get("resourceNames") and rule["verbs"] == ["get"]
        forbidden = {"pods/exec", "serviceaccounts/token", *([] if named else ["secrets"])}
        if forbidden & set(rule["resources"]):
            yield f"a role over {rule['resources']}"
    if resource["kind"].startswith("ClusterRole"):
        yield "rights over the whole cluster"


def _numbers(part: Any) -> Iterator[str]:
    """JSON 6902 patches make floats of large integers, which the API server refuses."""
    if isinstance(part, float) or (isinstance(part, str) and re.fullmatch(r"[\d.]+e\+?\d+", part)):
        yield f"{part} is no whole number"
    inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else []
    for each in inner:
        yield from _numbers(each)


def _queued(resource: Resource) -> Iterator[str]:
    """What Kueue's webhook refuses of a RayJob in a queue."""
    labels = resource["metadata"].get("labels", {})
    if resource["kind"] != "RayJob" or "kueue.x-k8s.io/queue-name" not in labels:
        return
    cluster = resource["spec"]["rayClusterSpec"]
    if not resource["spec"].get("shutdownAfterJobFinishes"):
        yield "keeps its quota after it is done (shutdownAfterJobFinishes)"
    if cluster.get("enableInTreeAutoscaling"):
        yield "is in a queue and autoscales"
    if any(group["groupName"] == "head" for group in cluster["workerGroupSpecs"]):
        yield "a group of workers is called head"


def _restricted(pod: Pod) -> Iterator[str]:
    """The restricted Pod Security Standard, and a root that cannot be written."""
    outer = pod.spec.get("securityContext", {})
    if outer.get("runAsNonRoot") is not True or outer.get("runAsUser") == 0:
        yield "may run as root"
    if outer.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "no seccomp profile"
    if any(pod.spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
        yield "shares the host's namespaces"
    for volume in pod.spec.get("volumes", []):
        if not volume.keys() & {"emptyDir", "persistentVolumeClaim", "configMap", "secret"}:
            yield f"volume {volume['name']} of a kind that is not allowed"
        if "persistentVolumeClaim" in volume and outer.get("fsGroupChangePolicy") is None:
            yield f"goes through all of volume {volume['name']} at every start"
        if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
            yield f"volume {volume['name']} may grow without limit"
    for container in pod.containers:
        inner = container.get("securityContext", {})
        if inner.get("allowPrivilegeEscalation") is not False or inner.get("privileged"):
            yield f"{container['name']} may gain privileges"
        if inner.get("capabilities") != {"drop": ["ALL"]}:
            yield f"{container['name']} keeps capabilities"
        if inner.get("readOnlyRootFilesystem") is not True:
            yield f"{container['name']} may write its root"
        if inner.get("runAsUser") == 0 or inner.get("runAsNonRoot") is False:
            yield f"{container['name']} may run as root"
        if any("hostPort" in port for port in container.get("ports", [])):
            yield f"{container['name']} takes a port of the host"


def _token(pod: Pod) -> Iterator[str]:
    account = pod.spec.get("serviceAccountName")
    if account is None:
        yield "runs as the default ServiceAccount"
    if pod.spec.get("automountServiceAccountToken") is not False and account not in WITH_TOKEN:
        yield "mounts a token of the API server"


def _limited(pod: Pod) -> Iterator[str]:
    for container in pod.containers:
        given = container.get("resources", {})
        for kind in ("requests", "limits"):
            if missing := {"cpu", "memory"} - given.get(kind, {}).keys():
                yield f"{container['name']} has no {kind} of {sorted(missing)}"
        for name, asked in given.get("requests", {}).items():
            if parse_quantity(asked) > parse_quantity(given.get("limits", {}).get(name, asked)):
                yield f"{container['name']} requests more {name} than its limit"


def _pinned(pod: Pod) -> Iterator[str]:
    for container in pod.containers:
        image = container["image"]
        tag = image.rpartition("/")[2].partition(":")[2]
        if "@sha256:" not in image and (not tag or tag == "latest"):
            yield f"image {image} is not pinned"


def _plain_secrets(pod: Pod) -> Iterator[str]:
    for container in pod.containers:
        for variable in container.get("env", []):
            value = re.sub(r"\$\(\w+\)", "", variable.get("value", ""))
            if _SECRET_NAME.search(variable["name"]) and value:
                yield f"{variable['name']} is a secret in plain text"


def _mounted(pod: Pod) -> Iterator[str]:
    volumes = {volume["name"] for volume in pod.spec.get("volumes", [])}
    mounts = {m["name"] for c in pod.containers for m in c.get("volumeMounts", [])}
    if volumes != mounts:
        yield f"volumes {sorted(volumes)} and mounts {sorted(mounts)} differ"
    for container in pod.spec["containers"]:
        if "/tmp" not in [mount["mountPath"] for mount in container.get("volumeMounts", [])]:
            yield f"{container['name']} has no /tmp to write to"


POD_CHECKS: tuple[Callable[[Pod], Iterator[str]], ...] = (
    _restricted, _token, _limited, _pinned, _plain_secrets, _mounted,
)  # fmt: skip


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a label selector, of a Service or with expressions, takes these labels."""
    simple = not selector.keys() & {"matchLabels", "matchExpressions"}
    wanted = selector if simple else selector.get("matchLabels", {})
    return all(labels.get(key) == value for key, value in wanted.items()) and all(
        one["key"] in labels
        and (one["operator"] == "Exists" or labels[one["key"]] in one.get("values", []))
        for one in selector.get("matchExpressions", [])
    )


def _selector_of(resource: Resource) -> Mapping[str, Any] | None:
    spec = resource.get("spec", {})
    key = {
        "Service": "selector", "PodDisruptionBudget": "selector", "PodMonitor": "selector",
        "Deployment": "selector", "NetworkPolicy": "podSelector",
    }.get(resource["kind"])  # fmt: skip
    return spec[key] if key else None


def _selectors(resources: list[Resource], pods: list[Pod]) -> Iterator[str]:
    """Whatever selects pods selects some."""
    running = [pod.labels for pod in pods] + FOREIGN_LABELS
    for resource in resources:
        name = f"{resource['kind']} {resource['metadata']['name']}"
        wanted = [] if (own := _selector_of(resource)) is None else [own]
        if resource["kind"] == "Deployment":
            running_here = [pod.labels for pod in pods_of(resource)]
            spread = resource["spec"]["template"]["spec"].get("topologySpreadConstraints", [])
            wanted += [one["labelSelector"] for one in spread]
        else:
            running_here = running
        for peer in _peers(resource):
            # other namespaces are not ours to check
            if "namespaceSelector" not in peer and "podSelector" in peer:
                wanted.append(peer["podSelector"])
        for selector in wanted:
            if not any(selects(selector, labels) for labels in running_here):
                yield f"{name}: selects no pod ({dict(selector)})"
        target = resource.get("spec", {}).get("scaleTargetRef")
        if target and not any(
            r["kind"] == "Deployment" and r["metadata"]["name"] == target["name"] for r in resources
        ):
            yield f"{name}: scales {target['name']}, which is not there"


def _peers(resource: Resource) -> Iterator[Resource]:
    if resource["kind"] == "NetworkPolicy":
        spec = resource["spec"]
        for way in (*spec.get("ingress", []), *spec.get("egress", [])):
            yield from (*way.get("from", []), *way.get("to", []))


def _ports(resources: list[Resource], pods: list[Pod]) -> Iterator[str]:
    """A port that is named is a port of the pods it is meant for."""
    for pod in pods:
        for container in pod.containers:
            names = [port["name"] for port in container.get("ports", []) if "name" in port]
            if len(names) < len(container.get("ports", [])) or len(set(names)) < len(names):
                yield f"{pod.where}: a port of {container['name']} has no name of its own"
            for key in ("startupProbe", "livenessProbe", "readinessProbe"):
                port = container.get(key, {}).get("httpGet", {}).get("port", "")
                if isinstance(port, str) and port and port not in names:
                    yield f"{pod.where}: {key} asks port {port}, which is not there"
    for resource in resources:
        spec, name = resource.get("spec", {}), f"{resource['kind']} {resource['metadata']['name']}"
        wanted: list[Any] = []
        if resource["kind"] == "Service":
            wanted = [port.get("targetPort", port["port"]) for port in spec["ports"]]
            if any("name" not in port for port in spec["ports"]):
                yield f"{name}: a port without a name"
        if resource["kind"] == "PodMonitor":
            wanted = [end["port"] for end in spec["podMetricsEndpoints"] if "port" in end]
        if resource["kind"] == "NetworkPolicy":
            ways = spec.get("ingress", [])
            wanted = [port["port"] for way in ways for port in way.get("ports", [])]
        selector = _selector_of(resource) or {}
        offered = {
            port for pod in pods if selects(selector, pod.labels) for port in pod.port_names()
        }
        for port in wanted:
            if isinstance(port, str) and port not in offered:
                yield f"{name}: port {port} is none of the pods it selects"


def _deny(resources: list[Resource], pods: list[Pod]) -> Iterator[str]:
    if not any(r["kind"] == "Namespace" for r in resources):
        return  # an example, applied into a namespace that is there
    policies = [r["spec"] for r in resources if r["kind"] == "NetworkPolicy"]
    if not any(
        spec["podSelector"] == {}
        and set(spec["policyTypes"]) == {"Ingress", "Egress"}
        and not spec.keys() & {"ingress", "egress"}
        for spec in policies
    ):
        yield "no NetworkPolicy denies everything by default"
    if any({} in spec.get(way, []) for spec in policies for way in ("ingress", "egress")):
        yield "a NetworkPolicy allows everything"
    labels = next(r for r in resources if r["kind"] == "Namespace")["metadata"]["labels"]
    if labels.get("pod-security.kubernetes.io/enforce") != "restricted":
        yield "the namespace does not enforce restricted Pod Security"


def _twice(resources: list[Resource], pods: list[Pod]) -> Iterator[str]:
    seen = [(r["kind"], r["metadata"].get("namespace"), r["metadata"]["name"]) for r in resources]
    yield from (f"{one} is there twice" for one in sorted({s for s in seen if seen.count(s) > 1}))


def _probes(resources: list[Resource], pods: list[Pod]) -> Iterator[str]:
    for pod in pods:
        if pod.where.startswith("Deployment"):
            for key in {"startupProbe", "livenessProbe", "readinessProbe"}:
                if any(key not in container for container in pod.spec["containers"]):
                    yield f"{pod.where}: no {key}"


def _references(resources: list[Resource], pods: list[Pod], documented: str) -> Iterator[str]:
    """What is named is there, or the page says that users make it."""
    there = {(r["kind"], r["metadata"]["name"]) for r in resources}
    for where, kind, name in [*_named_by_pods(pods), *_named_by_resources(resources)]:
        if (kind, name) not in there and not (kind == "Secret" and f"generic {name}" in documented):
            yield f"{where}: {kind} {name} is not there"


def _named_by_pods(pods: list[Pod]) -> Iterator[tuple[str, str, str]]:
    for pod in pods:
        if "serviceAccountName" in pod.spec:
            yield pod.where, "ServiceAccount", pod.spec["serviceAccountName"]
        if "priorityClassName" in pod.spec:
            yield pod.where, "PriorityClass", pod.spec["priorityClassName"]
        for volume in pod.spec.get("volumes", []):
            if "persistentVolumeClaim" in volume:
                claim = volume["persistentVolumeClaim"]["claimName"]
                yield pod.where, "PersistentVolumeClaim", claim
            if "configMap" in volume:
                yield pod.where, "ConfigMap", volume["configMap"]["name"]
        for container in pod.containers:
            sources = [e.get("valueFrom", {}) for e in container.get("env", [])]
            for source in [*sources, *container.get("envFrom", [])]:
                for key, kind in (
                    ("configMapRef", "ConfigMap"), ("secretRef", "Secret"),
                    ("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret"),
                ):  # fmt: skip
                    if key in source and not source[key].get("optional"):
                        yield pod.where, kind, source[key]["name"]


def _named_by_resources(resources: list[Resource]) -> Iterator[tuple[str, str, str]]:
    for resource in resources:
        name, spec = resource["metadata"]["name"], resource.get("spec", {})
        labels = resource["metadata"].get("labels", {})
        where = f"{resource['kind']} {name}"
        if "kueue.x-k8s.io/queue-name" in labels:
            yield where, "LocalQueue", labels["kueue.x-k8s.io/queue-name"]
        if "kueue.x-k8s.io/priority-class" in labels:
            yield where, "WorkloadPriorityClass", labels["kueue.x-k8s.io/priority-class"]
        if resource["kind"] == "LocalQueue":
            yield where, "ClusterQueue", spec["clusterQueue"]
        if resource["kind"] == "ClusterQueue":
            for group in spec["resourceGroups"]:
                for flavor in group["flavors"]:
                    yield where, "ResourceFlavor", flavor["name"]
        if resource["kind"] == "RoleBinding":
            yield where, resource["roleRef"]["kind"], resource["roleRef"]["name"]
            for subject in resource["subjects"]:
                yield where, subject["kind"], subject["name"]
