"""`terrafine k8s render`: the cluster gets the sizes of the spec that runs on a laptop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from terrafine.cli.k8s import rendered
from terrafine.cli.main import app
from terrafine.errors import SpecError, StageError
from terrafine.spec import parse_spec
from tests.kube_policies import complaints
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


def render(overlay: str, **parts: Any) -> list[Resource]:
    text = yaml.safe_dump({**SPEC, **parts})
    return read_all(rendered(parse_spec(text, where="spec"), text, K8S, overlay))


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
    ],
)
def test_what_an_overlay_cannot_hold_is_said_before_anything_is_applied(
    overlay: str, parts: dict[str, Any], said: str
) -> None:
    with pytest.raises(SpecError, match=said):
        render(overlay, **parts)


def test_an_unknown_overlay_is_named_with_those_there_are() -> None:
    with pytest.raises(StageError, match="gpu-16, object-store, single-node"):
        render("gpu-17")


def test_the_command_writes_what_kubectl_applies(tmp_path: Path) -> None:
    spec, into = tmp_path / "spec.yaml", tmp_path / "cluster.yaml"
    spec.write_text(yaml.safe_dump(SPEC))
    done = CliRunner().invoke(app, ["k8s", "render", str(spec), "--into", str(into)])
    assert done.exit_code == 0, done.output
    assert complaints(read_all(into.read_text()), PAGE) == []
