"""`terrafine k8s render`: the cluster gets the sizes of the spec that runs on a laptop."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from terrafine.cli.k8s import rendered
from terrafine.cli.main import app
from terrafine.errors import SpecError, StageError
from terrafine.spec import parse_spec
from tests.kube_policies import complaints, pods_of, with_templates
from tests.kube_schemas import Resource, read_all

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
PAGE = (ROOT / "docs" / "install-kubernetes.md").read_text()
SPEC: dict[str, Any] = {
    "name": "render",
    "imagery": {"scenes": [{"name": "a", "files": ["a.tif"]}]},
    "labels": {"file": "labels.tif"},
    "assess": {"reference": {"file": "points.gpkg", "crosswalk": "seven"}},
}


IMAGE = "registry.example:5000/land/terrafine"
DIGEST = f"@sha256:{64 * 'a'}"


def render(
    overlay: str, *, image: str | None = None, example: str | None = None, **parts: Any
) -> list[Resource]:
    text = yaml.safe_dump({**SPEC, **parts})
    spec = parse_spec(text, where="spec")
    return read_all(rendered(spec, text, K8S, overlay, image=image, example=example))


def images(resources: list[Resource]) -> set[str]:
    """Of terrafine, in every pod and in those that the launcher will make."""
    pods = [pod for found in with_templates(resources) for pod in pods_of(found)]
    return {c["image"] for pod in pods for c in pod.containers if "triton" not in c["image"]}


def one(resources: list[Resource], kind: str, name: str) -> Resource:
    return next(
        r for r in resources if r["kind"] == kind and r["metadata"]["name"].startswith(name)
    )


def job(resources: list[Resource], stage: str) -> Resource:
    data = one(resources, "ConfigMap", "terrafine-rayjobs")["data"]
    return dict(yaml.safe_load(data[f"{stage}.yaml"])["spec"])


def group(resources: list[Resource], stage: str) -> Resource:
    return dict(job(resources, stage)["rayClusterSpec"]["workerGroupSpecs"][0])


def limits(worker_group: Resource) -> Resource:
    return dict(worker_group["template"]["spec"]["containers"][0]["resources"]["limits"])


def test_a_spec_of_one_worker_runs_on_one_small_pod_that_is_no_head() -> None:
    found = render("single-node")
    assert complaints(found, PAGE) == []
    for stage in ("train", "prune", "map"):
        assert group(found, stage)["replicas"] == 1
        assert job(found, stage)["entrypointNumCpus"] == 1
    spec = one(found, "ConfigMap", "terrafine-spec")["data"]["spec.yaml"]
    assert yaml.safe_load(spec) == SPEC


def test_sixteen_workers_take_sixteen_gpus_in_pods_of_four() -> None:
    found = render(
        "gpu-16",
        training={"workers": 16, "loader_workers": 4, "metrics_port": 9200},
        map={"workers": 100, "predictor": "triton", "server": "grpc://triton-headless:8001"},
    )
    assert complaints(found, PAGE) == []
    train = group(found, "train")
    assert train["replicas"] * int(limits(train)["nvidia.com/gpu"]) == 16
    assert "entrypointNumCpus" not in job(found, "train")
    ports = train["template"]["spec"]["containers"][0]["ports"]
    assert {"name": "run-metrics", "containerPort": 9200} in ports
    mapping = group(found, "map")
    # mappers only read, ask and write: 8 to a pod, and as many pods as Ray finds work for
    assert "nvidia.com/gpu" not in limits(mapping)
    assert (mapping["minReplicas"], mapping["maxReplicas"]) == (1, 13)


def test_fewer_workers_than_a_machine_has_gpus_take_no_more_than_they_need() -> None:
    found = render("gpu-16", training={"workers": 2})
    train = group(found, "train")
    assert (train["replicas"], limits(train)["nvidia.com/gpu"]) == (1, "2")
    alone = render("gpu-16", training={"workers": 1})
    assert limits(group(alone, "train"))["nvidia.com/gpu"] == "1"
    assert job(alone, "train")["entrypointNumGpus"] == 1


def test_an_elastic_training_gets_the_most_and_may_have_the_least() -> None:
    train = group(render("gpu-16", training={"workers": [4, 16]}), "train")
    assert (train["minReplicas"], train["replicas"], train["maxReplicas"]) == (1, 4, 4)


def test_mappers_with_a_network_of_their_own_get_gpus() -> None:
    found = render("gpu-16", map={"workers": 8, "predictor": "torch"})
    assert complaints(found, PAGE) == []
    mapping = group(found, "map")
    assert mapping["maxReplicas"] * int(limits(mapping)["nvidia.com/gpu"]) == 8
    assert mapping["template"]["spec"]["tolerations"]


def test_servers_serve_the_model_that_the_spec_names() -> None:
    found = render(
        "gpu-16",
        serve={"name": "fine", "repository": "s3://m/fine", "engine_cache": "/cache"},
    )
    assert complaints(found, PAGE) == []
    shared = one(found, "ConfigMap", "terrafine-serving")
    assert shared["data"]["MODEL_NAME"] == "fine"
    assert shared["data"]["TERRAFINE_REPOSITORY"] == "s3://m/fine"
    pod = one(found, "Deployment", "triton")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/v2/models/fine/ready"
    assert "/cache" in [mount["mountPath"] for mount in container["volumeMounts"]]
    # the pods are replaced when what they agree on changes
    assert container["envFrom"][0]["configMapRef"]["name"] == shared["metadata"]["name"]


def test_servers_of_a_cpu_model_take_no_gpu() -> None:
    pod = one(render("gpu-16", serve={"device": "cpu"}), "Deployment", "triton")
    assert "nvidia.com/gpu" not in str(pod["spec"]["template"]["spec"]["containers"])


@pytest.mark.parametrize(
    ("overlay", "parts", "said"),
    [
        ("gpu-16", {"training": {"workers": 32}}, "wait for ever"),
        ("single-node", {"training": {"workers": 64, "batch": 64}}, "wait for ever"),
        ("single-node", {"training": {"loader_workers": 9}}, "lower training.loader_workers"),
        ("single-node", {"map": {"workers": 4, "predictor": "torch"}}, "takes a GPU"),
        ("single-node", {"serve": {"tensorrt": "fp16"}}, "need a GPU"),
        ("single-node", {"serve": {"repository": "/models"}}, "no folder but /work"),
        ("object-store", {"serve": {"repository": "/work/models"}}, "see no volume"),
    ],
)
def test_what_an_overlay_cannot_hold_is_said_before_anything_is_applied(
    overlay: str, parts: dict[str, Any], said: str
) -> None:
    with pytest.raises(SpecError, match=said):
        render(overlay, **parts)


def test_an_unknown_overlay_is_named_with_those_there_are() -> None:
    with pytest.raises(StageError, match="gpu-16, gpu-16-keda, object-store, single-node"):
        render("gpu-17")


@pytest.mark.parametrize("pin", [":7.7.7", DIGEST])
@pytest.mark.parametrize("overlay", ["single-node", "gpu-16"])
def test_one_image_that_a_cluster_can_pull_is_every_pods(overlay: str, pin: str) -> None:
    found = render(overlay, image=IMAGE + pin)
    assert complaints(found, PAGE) == []
    assert images(found) == {IMAGE + pin}


@pytest.mark.parametrize("example", ["deploy", "map-region", "shell", "job"])
def test_an_example_gets_the_image_too_and_fits_to_the_overlay(example: str) -> None:
    overlay, made = render("gpu-16"), render("gpu-16", image=f"{IMAGE}:7", example=example)
    assert images(made) == {f"{IMAGE}:7"}
    assert complaints([*overlay, *made], PAGE) == []
    there = read_all((K8S / "examples" / f"{example}.yaml").read_text())
    assert sorted(r["kind"] for r in made) == sorted(r["kind"] for r in there)


@pytest.mark.parametrize(("overlay", "variant"), [("single-node", "cpu"), ("gpu-16", "cuda")])
def test_the_image_that_is_built_here_is_the_one_that_pods_ask_for(
    overlay: str, variant: str
) -> None:
    (asked,) = images(render(overlay))
    said = subprocess.run(
        ["make", "--dry-run", "image", f"VARIANT={variant}"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    # as a kubelet reads a name without a registry
    assert f"--tag docker.io/library/{asked} " in said


@pytest.mark.parametrize("image", [IMAGE, f"{IMAGE}:latest", f"{IMAGE}@sha256:ab", ":1"])
def test_an_image_that_may_change_is_refused(image: str) -> None:
    with pytest.raises(StageError, match="does not say which it is"):
        render("single-node", image=image)


def test_the_deploy_job_is_for_the_servers_that_were_rendered() -> None:
    serve = {"name": "fine", "repository": "s3://m/fine", "variant": "fp16"}
    overlay = render("object-store", serve=serve)
    (job,) = render("object-store", serve=serve, example="deploy")
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    shared = one(overlay, "ConfigMap", "terrafine-serving")
    assert container["envFrom"][0] == {"configMapRef": {"name": shared["metadata"]["name"]}}
    assert shared["data"]["TERRAFINE_URL"] == "grpc://triton-admin:8001"
    assert shared["data"]["TERRAFINE_REPOSITORY"] == "s3://m/fine"
    # what would overrule it
    assert not {one["name"] for one in container["env"]} & shared["data"].keys()
    words = ["deploy", "/spec/spec.yaml", "--data", "/work/data", "--workdir", "/work/runs/render"]
    assert container["args"] == [*words, "--promote"]
    assert {"name": "spec", "mountPath": "/spec", "readOnly": True} in container["volumeMounts"]
    assert {"name": "spec", "configMap": {"name": "terrafine-spec"}} in pod["volumes"]
    spec = parse_spec(one(overlay, "ConfigMap", "terrafine-spec")["data"]["spec.yaml"], where="it")
    assert (spec.serve.name, spec.serve.variant) == ("fine", "fp16")
    assert "initContainers" not in pod, "the run has exported its model"


def test_a_champion_is_adopted_before_it_is_deployed() -> None:
    (job,) = render("gpu-16", champion="releases/landcover", example="deploy")
    (first,) = job["spec"]["template"]["spec"]["initContainers"]
    words = ["adopt", "/spec/spec.yaml", "--data", "/work/data", "--workdir", "/work/runs/render"]
    assert first["args"] == words
    assert "TERRAFINE_TRITON_ADMIN" not in str(first)


@pytest.mark.parametrize("workers", [1, 5])
def test_the_map_of_a_spec_has_room_for_its_workers(workers: int) -> None:
    parts = {"map": {"workers": workers, "metrics_port": 9300}, "champion": "releases/landcover"}
    made = render("single-node", example="map-region", **parts)
    spec = yaml.safe_load(one(made, "ConfigMap", "map-region")["data"]["spec.yaml"])
    assert spec["map"] == parts["map"]
    run = one(made, "RayJob", "map-region")["spec"]
    (pods,) = run["rayClusterSpec"]["workerGroupSpecs"]
    assert workers <= pods["replicas"] * int(limits(pods)["cpu"])
    # one worker is the driver itself, which else would map on the small head
    assert run.get("entrypointNumCpus") == (1 if workers == 1 else None)
    assert "containerPort': 9300" in str(run["rayClusterSpec"])
    assert run["entrypoint"].endswith("--data /work/data --workdir /work/runs/render")


def test_an_unknown_example_is_named_with_those_there_are() -> None:
    with pytest.raises(StageError, match="deploy, job, map-region, shell"):
        render("gpu-16", example="jobs")


def test_the_command_writes_what_kubectl_applies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERRAFINE_IMAGE", f"{IMAGE}:7")
    spec, into = tmp_path / "spec.yaml", tmp_path / "cluster.yaml"
    spec.write_text(yaml.safe_dump(SPEC))
    done = CliRunner().invoke(app, ["k8s", "render", str(spec), "--into", str(into)])
    assert done.exit_code == 0, done.output
    found = read_all(into.read_text())
    assert complaints(found, PAGE) == []
    assert images(found) == {f"{IMAGE}:7"}
