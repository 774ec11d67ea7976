"""What `kubectl apply` gets: every overlay and example, held against schemas and policies."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from serving.rayjob.template import STAGES, Order, filled
from terrafine.cli.k8s import kustomize
from terrafine.cli.main import app
from terrafine.spec import ServeSpec, parse_spec
from terrafine.storage import Storage
from terrafine.telemetry.port import RUN_PORT
from tests.buckets import s3_bucket
from tests.kube_policies import PART_OF, complaints, pods_of, with_templates
from tests.kube_schemas import Resource, read_all, require_crds

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
OVERLAYS = ("single-node", "gpu-16", "gpu-16-keda", "object-store")
EXAMPLES = ("map-region", "deploy", "job", "shell")
GPU = "requests.nvidia.com/gpu"
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


def test_servers_scale_by_keda_where_that_is_chosen_instead(
    overlays: dict[str, list[Resource]],
) -> None:
    found = overlays["gpu-16-keda"]
    assert one(found, "ScaledObject")["spec"]["scaleTargetRef"]["name"] == "triton"
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


@pytest.mark.parametrize("name", ["gpu-16", "gpu-16-keda", "object-store"])
def test_gpus_are_enough_for_training_all_servers_a_rollout_and_two_pipelines(
    overlays: dict[str, list[Resource]], name: str
) -> None:
    found = overlays[name]
    queue = one(found, "ClusterQueue")["spec"]["resourceGroups"][1]["flavors"][0]["resources"]
    serving = one(found, "Deployment", "triton")["spec"]
    each = serving["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    scaled = next(r["spec"] for r in found if "scaleTargetRef" in r.get("spec", {}))
    most = scaled.get("maxReplicas") or scaled["maxReplicaCount"]
    servers = most + serving["strategy"]["rollingUpdate"]["maxSurge"]
    steps = 2  # `filter` or `assess`, with a CUDA image
    takes = int(queue[0]["nominalQuota"]) + servers * int(each) + steps
    assert takes <= int(one(found, "ResourceQuota")["spec"]["hard"][GPU])
    assert "27" in next(line for line in PAGE.splitlines() if "not in Kueue's quota" in line)


def test_pods_of_a_pipeline_may_do_what_argo_and_kubeflow_do_in_them(
    overlays: dict[str, list[Resource]],
) -> None:
    """Argo's executor reports in WorkflowTaskResults; KFP's launcher reads two objects."""
    for found in overlays.values():
        rules = one(found, "Role", "terrafine-pipeline")["rules"]
        assert _may(rules, "argoproj.io", "workflowtaskresults") == {"create", "patch"}
        assert _may(rules, "", "configmaps", "kfp-launcher") == {"get"}
        assert _may(rules, "", "secrets", "mlpipeline-minio-artifact") == {"get"}
        assert _may(rules, "", "secrets", "terrafine-object-store") == set()


def test_servers_begin_over_an_empty_place(
    overlays: dict[str, list[Resource]], tmp_path: Path
) -> None:
    """Triton does not become live over a bucket's folder that holds nothing."""
    for name, found in overlays.items():
        (first,) = _triton(found)["initContainers"]
        data = _agreed(found)
        assert first["args"][-1] == "$(TERRAFINE_REPOSITORY)"
        assert data["TERRAFINE_REPOSITORY"] == data["TRITON_REPOSITORY"]
        assert data["TERRAFINE_REPOSITORY"].startswith("s3://") == (name == "object-store")
    with s3_bucket() as bucket:
        for place in (f"{bucket}/models", str(tmp_path / "models")):
            for _ in range(2):
                done = CliRunner().invoke(app, [*first["args"][:-1], place])
                assert done.exit_code == 0, done.output
                assert Storage.at(place).names() == [".keep"]
        Storage.at(f"{bucket}/used").write("landcover/config.pbtxt", b"")
        CliRunner().invoke(app, [*first["args"][:-1], f"{bucket}/used"])
        assert Storage.at(f"{bucket}/used").names() == ["landcover/config.pbtxt"]


def test_servers_of_a_bucket_need_nothing_of_the_volume(
    overlays: dict[str, list[Resource]],
) -> None:
    assert "terrafine-work" not in str(_triton(overlays["object-store"]))
    assert "terrafine-work" in str(_triton(overlays["gpu-16"]))


@pytest.mark.parametrize("stage", STAGES)
def test_clearing_an_overlays_leftovers_spares_runs(
    overlays: dict[str, list[Resource]], stage: str
) -> None:
    overlay = one(overlays["gpu-16"], "Deployment")["metadata"]["labels"][PART_OF]
    for resources in overlays.values():
        order = Order(stage, "name: a\n", "/work/data", "/work/runs/a", "1")
        made = filled(template(resources, order.stage.removesuffix("-preliminary")), order, [])
        assert made["metadata"]["labels"][PART_OF] != overlay
        assert f'"{PART_OF}": "{overlay}"' not in json.dumps(made["spec"])


def test_runs_serve_metrics_where_prometheus_looks(overlays: dict[str, list[Resource]]) -> None:
    """Without a word in their spec: the pods of the RayJobs name the port."""
    for resources in overlays.values():
        jobs = [template(resources, stage) for stage in ("train", "prune", "map")]
        for job in [*jobs, one(example("map-region"), "RayJob")]:
            cluster = job["spec"]["rayClusterSpec"]
            for pod in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
                container = pod["template"]["spec"]["containers"][0]
                ports = {port["name"]: str(port["containerPort"]) for port in container["ports"]}
                assert {"name": RUN_PORT, "value": ports["run-metrics"]} in container["env"]


def test_the_deploy_example_is_true_to_single_node(overlays: dict[str, list[Resource]]) -> None:
    data = _agreed(overlays["single-node"])
    (container,) = one(example("deploy"), "Job")["spec"]["template"]["spec"]["containers"]
    said = {one["name"]: one.get("value") for one in container["env"]}
    for name in ("TERRAFINE_URL", "TERRAFINE_REPOSITORY"):
        assert said[name] == data[name]
    assert data["MODEL_NAME"] == ServeSpec().name


def test_the_map_region_example_is_a_page_and_its_spec_is_one() -> None:
    text = (K8S / "examples" / "map-region.yaml").read_text()
    assert len(text.splitlines()) <= 100
    spec = parse_spec(one(read_all(text), "ConfigMap")["data"]["spec.yaml"], where="map-region")
    assert spec.champion is not None
    (group,) = one(read_all(text), "RayJob")["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    cpus = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert 2 <= spec.map.workers <= group["replicas"] * cpus, "one would map on the head"


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


def _agreed(resources: list[Resource]) -> dict[str, str]:
    """What servers and those who deploy to them agree on."""
    (found,) = [
        r["data"] for r in resources if r["metadata"]["name"].startswith("terrafine-serving-")
    ]
    return dict(found)


def _may(rules: list[Resource], group: str, resource: str, name: str = "") -> set[str]:
    """The verbs that a role allows."""
    return {
        verb
        for rule in rules
        if group in rule["apiGroups"] and resource in rule["resources"]
        if name in rule.get("resourceNames", [name])
        for verb in rule["verbs"]
    }


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
    "volume gone through at every start": (
        lambda r: _triton(r)["securityContext"].pop("fsGroupChangePolicy"), "at every start",
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
    "role over every secret": (
        lambda r: one(r, "Role")["rules"][-1].pop("resourceNames"), "role over",
    ),
    "role that changes a secret": (
        lambda r: one(r, "Role")["rules"][-1].update(verbs=["get", "patch"]), "role over",
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
