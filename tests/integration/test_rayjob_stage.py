"""A pipeline's step whose RayJob does the stage: the step finds it done and hands it on."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import dsl

from components.label.component import label
from components.train.component import train_preliminary
from terrafine.errors import StageError
from tests.kube_api import KubeApi, RayJob, kube_api
from tests.scenes import Project, make_project
from tests.unit.test_rayjob_launcher import OWNER, TEMPLATE


class Operator:
    """What KubeRay does with a RayJob: its entrypoint runs, elsewhere, and the status tells."""

    def __init__(self, api: KubeApi) -> None:
        self._api = api
        api.on_create = lambda job: threading.Thread(target=self._run, args=(job,)).start()

    def _run(self, job: RayJob) -> None:
        job["status"] = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        process = subprocess.Popen(
            ["sh", "-c", job["spec"]["entrypoint"]], text=True, env={**os.environ, "PATH": path},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
            self._api.lines.append(f"{now} {line.rstrip()}")
        ended = ("Complete", "SUCCEEDED") if process.wait() == 0 else ("Failed", "FAILED")
        job["status"] = dict(zip(("jobDeploymentStatus", "jobStatus"), ended, strict=True))


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeApi]:
    with kube_api() as api:
        Operator(api)
        (tmp_path / "rayjobs").mkdir()
        (tmp_path / "rayjobs" / "train.yaml").write_text(yaml.safe_dump(TEMPLATE))
        for key, value in {
            "KUBECONFIG": str(api.kubeconfig(tmp_path)),
            "TERRAFINE_RAYJOBS": str(tmp_path / "rayjobs"),
            "TERRAFINE_PIPELINE_JOB": "8c2f3f9e",
            "POD_NAME": OWNER["name"],
            "POD_UID": OWNER["uid"],
        }.items():
            monkeypatch.setenv(key, value)
        yield api


def small(folder: Path) -> Project:
    project = make_project(folder)
    project.change_spec(
        training={"preliminary_epochs": 1, "crops_per_chip": 1}, model={"arch": "unet_w4"}
    )
    return project


def call(component: Any, project: Project, **given: Any) -> dict[str, Any]:
    """The manifest that a component's body leaves."""
    folder = project.root / component.name
    folder.mkdir(exist_ok=True)
    manifest = dsl.Artifact(name="manifest", uri=str(folder / "manifest"))
    component.python_func(
        spec=project.spec.read_text(),
        data=str(project.root),
        workdir=str(project.root / "run"),
        manifest=manifest,
        metrics=dsl.Metrics(name="metrics", uri=str(folder / "metrics")),
        **given,
    )
    return {"manifest": manifest, "said": json.loads(Path(manifest.path).read_text())}


@pytest.mark.slow
def test_the_rayjob_trains_and_the_step_hands_its_result_on(
    cluster: KubeApi, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    project = small(tmp_path)
    chips = call(label, project)["manifest"]
    assert cluster.created == [], "a small stage is done in the step"
    trained = call(train_preliminary, project, chips=chips)["said"]
    (job,) = cluster.created
    assert job["metadata"]["ownerReferences"] == [OWNER]
    assert "8c2f3f9e" in job["metadata"]["name"]
    assert trained["stage"] == "train-preliminary"
    said = [record.getMessage() for record in caplog.records]
    assert any("'train-preliminary', 'state': 'skipped'" in line for line in said)
    assert any("train preliminary: 4/4 step" in line for line in said), "the driver's own lines"
    # once more, as after a restart of the pod: nothing is launched for what is done
    assert call(train_preliminary, project, chips=chips)["said"] == trained
    assert len(cluster.created) == 1


@pytest.mark.slow
def test_what_the_rayjob_cannot_do_fails_the_step_with_its_sentence(
    cluster: KubeApi, tmp_path: Path
) -> None:
    project = small(tmp_path)
    chips = call(label, project)["manifest"]
    for array in (project.root / "run" / "label" / "latest").rglob("zarr.json"):
        array.unlink()
    with pytest.raises(StageError, match=r"did not succeed: Failed FAILED: .*chips"):
        call(train_preliminary, project, chips=chips)
    assert not (project.root / "run" / "train-preliminary" / "latest").exists()


def test_a_missing_template_stops_the_step_and_trains_nothing(
    cluster: KubeApi, tmp_path: Path
) -> None:
    project = small(tmp_path)
    chips = call(label, project)["manifest"]
    (tmp_path / "rayjobs" / "train.yaml").unlink()
    with pytest.raises(StageError, match="terrafine-rayjobs"):
        call(train_preliminary, project, chips=chips)
    assert cluster.created == []
