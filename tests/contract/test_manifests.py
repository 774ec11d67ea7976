"""What `kubectl apply` gets: every overlay and example, held against schemas and policies."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from terrafine.cli.k8s import kustomize
from terrafine.spec import parse_spec
from tests.kube_policies import complaints, pods_of, with_templates
from tests.kube_schemas import Resource, read_all, require_crds

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
OVERLAYS = ("single-node", "gpu-16", "object-store")
EXAMPLES = ("map-region", "deploy", "job")
PAGE = (ROOT / "docs" / "install-kubernetes.md").read_text()


@pytest.fixture(scope="module")
def overlays() -> dict[str, list[Resource]]:
    return {name: read_all(kustomize(K8S / "overlays" / name)) for name in OVERLAYS}


def example(name: str) -> list[Resource]:
    return read_all((K8S / "examples" / f"{name}.yaml").read_text())


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_may_be_applied(overlays: dict[str, list[Resource]], name: str) -> None:
    assert complaints(overlays[name], PAGE) == []


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_may_be_applied_beside_every_overlay(
    overlays: dict[str, list[Resource]], name: str
) -> None:
    for overlay in OVERLAYS:
        assert complaints([*overlays[overlay], *example(name)], PAGE) == []


@pytest.mark.shared
def test_custom_resources_are_held_against_their_definitions(
    overlays: dict[str, list[Resource]],
) -> None:
    require_crds()
    wrong = copy.deepcopy(overlays["single-node"])
    one(wrong, "ClusterQueue")["spec"]["nominalQuota"] = "1"
    assert "nominalQuota" in " ".join(complaints(wrong, PAGE))


def test_servers_scale_by_keda_where_that_is_chosen_instead(tmp_path: Path) -> None:
    copied = tmp_path / "k8s"
    _copy(K8S, copied)
    place = copied / "overlays" / "gpu-16" / "kustomization.yaml"
    place.write_text(place.read_text().replace("components/hpa", "components/keda"))
    found = read_all(kustomize(place.parent))
    assert complaints(found, PAGE) == []
    assert "replicas" not in one(found, "Deployment", "triton")["spec"]
    assert not [r for r in found if r["kind"] == "HorizontalPodAutoscaler"]


def test_a_users_image_reaches_every_pod_and_every_template(tmp_path: Path) -> None:
    copied = tmp_path / "k8s"
    _copy(K8S, copied)
    place = copied / "base" / "kustomization.yaml"
    place.write_text(place.read_text().replace("newTag: 0.1.0", "newTag: 7.7.7"))
    found = with_templates(read_all(kustomize(copied / "overlays" / "single-node")))
    images = {c["image"] for r in found for pod in pods_of(r) for c in pod.containers}
    assert {image for image in images if "terrafine" in image} == {"terrafine:7.7.7"}


@pytest.mark.parametrize("stage", ["train", "prune", "map"])
def test_the_launcher_gets_one_template_for_each_heavy_stage(
    overlays: dict[str, list[Resource]], stage: str
) -> None:
    for resources in overlays.values():
        job = template(resources, stage)
        cluster = job["spec"]["rayClusterSpec"]
        assert job["metadata"]["name"] == f"terrafine-{stage}"
        assert "config.kubernetes.io/local-config" not in job["metadata"]["annotations"]
        assert cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["name"] == "ray-head"
        (workers,) = cluster["workerGroupSpecs"]
        assert workers["template"]["spec"]["containers"][0]["name"] == "ray-worker"
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_sixteen_gpus_train_and_mappers_scale(overlays: dict[str, list[Resource]]) -> None:
    (train,) = template(overlays["gpu-16"], "train")["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    gpus = train["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    assert train["replicas"] * int(gpus) == 16
    mapping = template(overlays["gpu-16"], "map")["spec"]["rayClusterSpec"]
    assert mapping["enableInTreeAutoscaling"] is True
    assert mapping["workerGroupSpecs"][0]["maxReplicas"] > 1


def test_the_map_region_example_is_a_page_and_its_spec_is_one() -> None:
    text = (K8S / "examples" / "map-region.yaml").read_text()
    assert len(text.splitlines()) <= 100
    spec = parse_spec(one(read_all(text), "ConfigMap")["data"]["spec.yaml"], where="map-region")
    assert spec.champion is not None
    (group,) = one(read_all(text), "RayJob")["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    cpus = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert spec.map.workers <= group["replicas"] * cpus


def test_every_field_of_the_example_is_explained() -> None:
    page = (ROOT / "docs" / "apply-a-map.md").read_text()
    resources = example("map-region")
    spec = yaml.safe_load(one(resources, "ConfigMap")["data"]["spec.yaml"])
    missing = [key for key in sorted(_keys(resources) | _keys(spec)) if f"`{key}`" not in page]
    assert not missing


def template(resources: list[Resource], stage: str) -> Resource:
    found = one(resources, "ConfigMap", "terrafine-rayjobs")["data"][f"{stage}.yaml"]
    return dict(yaml.safe_load(found))


def one(resources: list[Resource], kind: str, name: str | None = None) -> Resource:
    return next(r for r in resources if r["kind"] == kind and name in (None, r["metadata"]["name"]))


def _copy(source: Path, into: Path) -> None:
    for path in source.rglob("*"):
        if path.is_file():
            (into / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (into / path.relative_to(source)).write_bytes(path.read_bytes())


def _keys(part: Any) -> set[str]:
    """Names of fields; not of labels and of other free keys."""
    if isinstance(part, list):
        return set().union(*map(_keys, part))
    if not isinstance(part, dict):
        return set()
    free = {"labels", "requests", "limits", "data", "rayStartParams"}
    return set(part).union(*(_keys(inner) for key, inner in part.items() if key not in free))


Change = Callable[[list[Resource]], Any]


def _triton(resources: list[Resource]) -> Resource:
    return dict(one(resources, "Deployment", "triton")["spec"]["template"]["spec"])


def _container(resources: list[Resource]) -> Resource:
    found: Resource = _triton(resources)["containers"][0]
    return found


def _in_template(change: Callable[[Resource], Any]) -> Change:
    def apply(resources: list[Resource]) -> None:
        data = one(resources, "ConfigMap", "terrafine-rayjobs")["data"]
        job = yaml.safe_load(data["map.yaml"])
        change(job)
        data["map.yaml"] = yaml.safe_dump(job)

    return apply


def _worker(job: Resource) -> Resource:
    group: Resource = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    return group


def _drop(kind: str, name: str) -> Change:
    return lambda resources: resources.remove(one(resources, kind, name))


BROKEN: dict[str, tuple[Change, str]] = {
    "typo in a field": (lambda r: _container(r).update(imagePullPolice="Always"), "schema"),
    "wrong type": (lambda r: one(r, "Deployment")["spec"].update(replicas="two"), "schema"),
    "unknown version": (lambda r: one(r, "Deployment").update(apiVersion="apps/v2"), "schema"),
    "privileged": (
        lambda r: _container(r)["securityContext"].update(privileged=True), "gain privileges",
    ),
    "may escalate": (
        lambda r: _container(r)["securityContext"].pop("allowPrivilegeEscalation"),
        "gain privileges",
    ),
    "keeps capabilities": (
        lambda r: _container(r)["securityContext"].update(capabilities={}), "keeps capabilities",
    ),
    "adds a capability": (
        lambda r: _container(r)["securityContext"]["capabilities"].update(add=["SYS_ADMIN"]),
        "keeps capabilities",
    ),
    "writes its root": (
        lambda r: _container(r)["securityContext"].pop("readOnlyRootFilesystem"), "write its root",
    ),
    "root": (lambda r: _triton(r)["securityContext"].update(runAsUser=0), "run as root"),
    "no seccomp": (lambda r: _triton(r)["securityContext"].pop("seccompProfile"), "seccomp"),
    "root in one container": (
        lambda r: _container(r)["securityContext"].update(runAsUser=0), "run as root",
    ),
    "host's network": (
        lambda r: one(r, "Deployment", "triton")["spec"]["template"]["spec"].update(
            hostNetwork=True
        ),
        "host's namespaces",
    ),
    "host's folder": (
        lambda r: _triton(r)["volumes"].append({"name": "x", "hostPath": {"path": "/"}}),
        "not allowed",
    ),
    "token mounted": (
        lambda r: one(r, "Deployment", "triton")["spec"]["template"]["spec"].pop(
            "automountServiceAccountToken"
        ),
        "token of the API server",
    ),
    "no limits": (lambda r: _container(r)["resources"].pop("limits"), "has no limits"),
    "request above limit": (
        lambda r: _container(r)["resources"]["requests"].update(cpu="100"), "more cpu",
    ),
    "memory without end": (
        lambda r: _triton(r)["volumes"][-1].update(emptyDir={}), "grow without limit",
    ),
    "latest image": (lambda r: _container(r).update(image="triton:latest"), "not pinned"),
    "image without tag": (lambda r: _container(r).update(image="host:5000/triton"), "not pinned"),
    "secret in plain text": (
        lambda r: _container(r)["env"].append({"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}),
        "plain text",
    ),
    "secret resource": (
        lambda r: r.append({**one(r, "ConfigMap"), "kind": "Secret"}), "secret is written",
    ),
    "credentials in a URL": (
        lambda r: _container(r)["args"].append("--x=https://me:pass@host/bucket"),
        "plain text",
    ),
    "service selects nothing": (
        lambda r: one(r, "Service", "triton")["spec"].update(selector={"app": "other"}),
        "selects no pod",
    ),
    "budget selects nothing": (
        lambda r: one(r, "PodDisruptionBudget")["spec"].update(
            selector={"matchLabels": {"app": "other"}}
        ),
        "selects no pod",
    ),
    "unnamed port": (lambda r: _container(r)["ports"][0].pop("name"), "no name of its own"),
    "service to no port": (
        lambda r: one(r, "Service", "triton")["spec"]["ports"][0].update(targetPort="web"),
        "port web",
    ),
    "probe of no port": (
        lambda r: _container(r)["readinessProbe"]["httpGet"].update(port="web"), "asks port web",
    ),
    "no readiness": (lambda r: _container(r).pop("readinessProbe"), "no readinessProbe"),
    "metrics of no port": (
        lambda r: one(r, "PodMonitor", "triton")["spec"]["podMetricsEndpoints"][0].update(
            port="web"
        ),
        "port web",
    ),
    "way in to no port": (
        lambda r: one(r, "NetworkPolicy", "triton")["spec"]["ingress"][0]["ports"][0].update(
            port="web"
        ),
        "port web",
    ),
    "open network": (
        lambda r: one(r, "NetworkPolicy", "dns")["spec"].update(egress=[{}]), "allows everything",
    ),
    "no default deny": (_drop("NetworkPolicy", "default-deny"), "denies everything"),
    "no Pod Security": (
        lambda r: one(r, "Namespace")["metadata"].update(
            labels={"app.kubernetes.io/part-of": "terrafine"}
        ),
        "restricted Pod Security",
    ),
    "missing ConfigMap": (
        lambda r: _container(r)["envFrom"][0]["configMapRef"].update(name="other"),
        "ConfigMap other",
    ),
    "missing secret": (
        lambda r: _container(r)["env"][1]["valueFrom"]["secretKeyRef"].update(name="other"),
        "Secret other",
    ),
    "missing account": (_drop("ServiceAccount", "terrafine-triton"), "ServiceAccount"),
    "missing claim": (_drop("PersistentVolumeClaim", "terrafine-engines"), "PersistentVolumeClaim"),
    "missing role": (_drop("Role", "terrafine-pipeline"), "Role terrafine-pipeline is not"),
    "missing flavor": (_drop("ResourceFlavor", "terrafine-cpu"), "ResourceFlavor"),
    "missing queue": (_drop("LocalQueue", "terrafine"), "LocalQueue"),
    "mount of no volume": (
        lambda r: _container(r)["volumeMounts"].append({"name": "x", "mountPath": "/x"}), "differ",
    ),
    "wildcard role": (
        lambda r: one(r, "Role")["rules"][0].update(verbs=["*"]), "wildcard",
    ),
    "role over secrets": (
        lambda r: one(r, "Role")["rules"][1].update(resources=["secrets"]), "role over",
    ),
    "other namespace": (
        lambda r: one(r, "Service")["metadata"].update(namespace="default"), "namespace default",
    ),
    "namespace on what has none": (
        lambda r: one(r, "ClusterQueue")["metadata"].update(namespace="terrafine"),
        "belongs to the cluster",
    ),
    "unlabelled": (lambda r: one(r, "Service")["metadata"].pop("labels"), "pruned"),
    "twice": (lambda r: r.append(copy.deepcopy(one(r, "Service"))), "twice"),
    "deprecated": (
        lambda r: one(r, "LocalQueue").update(apiVersion="kueue.x-k8s.io/v1beta1"), "deprecated",
    ),
    "template as root": (
        _in_template(lambda job: _worker(job)["template"]["spec"].pop("securityContext")),
        "RayJob terrafine-map workers: may run as root",
    ),
    "template keeps its cluster": (
        _in_template(lambda job: job["spec"].pop("shutdownAfterJobFinishes")), "keeps its quota",
    ),
    "template in a queue autoscales": (
        _in_template(
            lambda job: job["spec"]["rayClusterSpec"].update(enableInTreeAutoscaling=True)
        ),
        "autoscales",
    ),
    "template with a float": (
        _in_template(lambda job: _worker(job).update(replicas=1e6)), "no whole number",
    ),
    "template without a volume": (
        _in_template(lambda job: _worker(job)["template"]["spec"]["volumes"].pop()), "differ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_manifest_is_noticed(overlays: dict[str, list[Resource]], name: str) -> None:
    change, said = BROKEN[name]
    broken = copy.deepcopy(overlays["single-node"])
    change(broken)
    assert said in "\n".join(complaints(broken, PAGE))


def test_a_key_that_is_there_twice_is_noticed() -> None:
    with pytest.raises(yaml.YAMLError, match="twice"):
        read_all("kind: Job\nspec: {a: 1, a: 2}")
