"""The compiled pipelines are what a cluster gets: they change only when someone means them to."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from terrafine import __version__
from terrafine.cli.pipeline import Pipeline, write_yaml
from terrafine.spec import MapSpec
from terrafine.stages import ENGINE
from tests.kube_policies import PART_OF, metadata_complaints, selects
from tests.kube_schemas import read_all

GOLDEN = Path(__file__).parent
DOCS = Path(__file__).parents[2] / "docs"
K8S = Path(__file__).parents[2] / "k8s"
TEACH = ["prepare", "label", "train-preliminary", "filter-chips", "train", "prune", "assess",
         "gate", "decision"]  # fmt: skip
STEPS = {
    "national_map": [*TEACH, "export", "deploy", "map-scenes", "publish", "refuse"],
    "retrain": [*TEACH, "export", "deploy", "refuse"],
    "map_only": ["prepare", "adopt", "map-scenes", "publish"],
}
LAUNCHES = {"train-preliminary", "train", "prune", "map-scenes"}

pytestmark = pytest.mark.parametrize("name", list(STEPS))


@cache
def documents(file: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The two documents of a golden file."""
    first, second = yaml.load_all((GOLDEN / file).read_text(), yaml.CSafeLoader)
    return first, second


def parts(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Pipeline spec and, by step, what Kubernetes is told of it."""
    pipeline, platform = documents(f"{name}.yaml")
    return pipeline, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def tasks(name: str) -> dict[str, dict[str, Any]]:
    """Every step of a pipeline, those in its branches too."""
    pipeline, _ = parts(name)
    dags = [pipeline["root"], *pipeline["components"].values()]
    found = {k: v for dag in dags for k, v in dag.get("dag", {}).get("tasks", {}).items()}
    return {k: v for k, v in found.items() if not k.startswith("condition-")}


def test_the_compiled_pipeline_is_the_committed_one(name: str, tmp_path: Path) -> None:
    compiled = write_yaml(Pipeline(name), tmp_path / "compiled.yaml").read_text()
    assert compiled == (GOLDEN / f"{name}.yaml").read_text(), "if it is meant: `make golden`"


def test_what_kubectl_applies_is_the_same_pipeline(name: str) -> None:
    """Compared with the committed pipeline, since compiling it once more takes seconds."""
    pipeline, version = documents(f"{name}.manifests.yaml")
    assert version["metadata"]["name"] == f"{pipeline['metadata']['name']}-{__version__}"
    assert (pipeline["kind"], version["kind"]) == ("Pipeline", "PipelineVersion")
    assert version["spec"]["pipelineName"] == pipeline["metadata"]["name"]
    spec, executors = parts(name)
    assert version["spec"]["pipelineSpec"] == spec
    kubernetes = version["spec"]["platformSpec"]["platforms"]["kubernetes"]
    assert kubernetes["deploymentSpec"]["executors"] == executors


def test_every_step_is_there_and_every_stage_of_its_spec(name: str) -> None:
    assert sorted(tasks(name)) == sorted(STEPS[name])
    champion = {"champion": "release"} if name == "map_only" else TAUGHT
    stages = set(ENGINE.names(MapSpec.model_validate({**IMAGERY, **champion})))
    if name == "retrain":
        stages -= {"map", "publish"}
    pipeline, _ = parts(name)
    executors = pipeline["deploymentSpec"]["executors"].values()
    commands = " ".join("".join(e["container"]["command"]) for e in executors)
    one_line = commands.replace("(\n        ", "(")
    assert {stage for stage in stages if f'run_stage("{stage}"' in one_line} == stages


def test_the_gate_has_both_branches(name: str) -> None:
    pipeline, _ = parts(name)
    conditions = [name for name in pipeline["components"] if name.startswith("comp-condition-")]
    branches = [
        sorted(pipeline["components"][c].get("dag", {}).get("tasks", {})) for c in conditions
    ]
    promoted = sorted(set(STEPS[name]) - set(TEACH) - {"refuse"})
    if name == "map_only":
        assert not conditions, "a champion has passed its gate"
    else:
        assert promoted in branches
        assert ["refuse"] in branches


def test_a_map_by_model_servers_waits_for_the_new_model(name: str) -> None:
    if name == "national_map":
        assert "deploy" in tasks(name)["map-scenes"]["dependentTasks"]


def test_kfp_caches_no_step(name: str) -> None:
    """Its key is the spec's text and paths: changed pixels would get yesterday's verdict."""
    assert all("enableCache" not in t.get("cachingOptions", {}) for t in tasks(name).values())


def test_a_step_is_tried_again_where_that_can_help(name: str) -> None:
    """Those that launch RayJobs find them again; what a spec or a gate refuses stays refused."""
    again = {k: t.get("retryPolicy", {}).get("maxRetryCount", 0) for k, t in tasks(name).items()}
    for step, times in again.items():
        if step in LAUNCHES:
            assert times == 3
        elif step in ("prepare", "gate", "decision"):
            assert times == 0
        else:
            assert times in (1, 3)


def test_no_step_of_the_cpu_image_asks_for_a_gpu(name: str) -> None:
    pipeline, kubernetes = parts(name)
    for label, executor in pipeline["deploymentSpec"]["executors"].items():
        assert "-cuda" not in executor["container"]["image"]
        resources = executor["container"]["resources"]
        assert resources["resourceMemoryLimit"] == resources["resourceMemoryRequest"]
        assert "accelerator" not in resources
        assert not kubernetes[label].keys() & {"tolerations", "nodeSelector"}


def test_launchers_are_those_that_prometheus_looks_for(name: str) -> None:
    monitors = read_all((K8S / "base" / "monitoring" / "podmonitors.yaml").read_text())
    wanted = next(m["spec"]["selector"] for m in monitors if m["metadata"]["name"] == "pipeline")
    _, kubernetes = parts(name)
    found = {k for k, told in kubernetes.items() if selects(wanted, told["podMetadata"]["labels"])}
    assert found == {f"exec-{step}" for step in LAUNCHES & set(STEPS[name])}


def test_clearing_an_overlays_leftovers_spares_runs_and_pipelines(name: str) -> None:
    (own,) = yaml.safe_load((K8S / "base" / "kustomization.yaml").read_text())["labels"]
    _, kubernetes = parts(name)
    of_steps = [told["podMetadata"]["labels"] for told in kubernetes.values()]
    of_pipelines = [r["metadata"]["labels"] for r in documents(f"{name}.manifests.yaml")]
    assert PART_OF in own["pairs"]
    for labels in (*of_steps, *of_pipelines):
        assert labels[PART_OF] != own["pairs"][PART_OF]


def test_pipelines_say_where_they_belong_and_to_whom(name: str) -> None:
    for resource in documents(f"{name}.manifests.yaml"):
        assert list(metadata_complaints(resource)) == []


def test_every_step_sees_the_volume_and_may_not_be_root(name: str) -> None:
    _, kubernetes = parts(name)
    for told in kubernetes.values():
        assert [(v["constant"], v["mountPath"]) for v in told["pvcMount"]] == [
            ("terrafine-work", "/work")
        ]
        assert told["securityContext"]["runAsNonRoot"] is True
        for kind in ("configMapAsVolume", "configMapAsEnv", "secretAsEnv"):
            assert all(one["optional"] for one in told[kind]), "a small cluster has none"
        names = {one["name"] for one in told["fieldPathAsEnv"]}
        assert names == {"POD_NAME", "POD_UID", "TERRAFINE_PIPELINE_JOB"}


def test_nothing_is_installed_when_a_step_starts(name: str) -> None:
    assert "pip install" not in (GOLDEN / f"{name}.yaml").read_text()


def test_the_form_in_the_ui_explains_its_fields(name: str) -> None:
    """An empty default reads as missing there; docs/kubeflow.md shows the same table."""
    pipeline, _ = parts(name)
    page = (DOCS / "kubeflow.md").read_text()
    for field, told in pipeline["root"]["inputDefinitions"]["parameters"].items():
        assert told["parameterType"] == "STRING"
        assert told["defaultValue"], field
        row = f"| `{field}` | `{told['defaultValue']}` | {told['description']} |"
        assert row in page, f"docs/kubeflow.md: the table of {name} lacks {row}"


IMAGERY = {"name": "any", "imagery": {"scenes": [{"name": "a", "files": ["a.tif"]}]}}
TAUGHT = {"labels": {"file": "l.tif"}, "assess": {"reference": {"file": "r.gpkg"}}}
