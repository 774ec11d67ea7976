"""What makes two maps one run, or an update one map: all that their pixels depend on."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from terrafine.errors import MapStoreError
from terrafine.export import Release, read_release
from terrafine.mapping import MapStore
from terrafine.stages import ENGINE, Job
from terrafine.stages.map import map_place, map_scenes, open_inputs, pixels_digest
from terrafine.stages.update import update_map
from tests.scenes import Project

TRITON = {"predictor": "triton", "server": "grpc://models:8001"}


def job_of(project: Project) -> Job:
    return Job.open(project.spec, data=None, workdir=project.root / "run")


@pytest.mark.parametrize(
    ("mapping", "matters"), [(TRITON, True), ({"predictor": "onnx"}, False)], ids=["triton", "onnx"]
)
def test_what_a_model_server_runs_is_a_part_of_the_map_it_makes(
    project: Project, mapping: dict[str, Any], matters: bool
) -> None:
    project.change_spec(map=mapping)
    found = []
    for serve in ({}, {"variant": "int8"}, {"variant": "fp32", "tensorrt": "fp16"}):
        project.change_spec(serve=serve)
        job = job_of(project)
        found.append((pixels_digest(job, "graph"), ENGINE.digests(job, "map")["map"]))
    runs, stages = ({digests[i] for digests in found} for i in (0, 1))
    assert len(runs) == len(stages) == (3 if matters else 1)
    project.change_spec(serve={"max_batch": 4})
    assert pixels_digest(job_of(project), "graph") == found[-1][0]


@pytest.fixture
def mapped(project: Project, releases: tuple[Release, Release]) -> Project:
    """A released map of a folder with one scene."""
    (project.root / "scenes").mkdir()
    (project.root / "scene.tif").rename(project.root / "scenes" / "scene_20200601.tif")
    catalogue = {"source": "scenes", "order": "newest"}
    project.change_spec(
        imagery={"scenes": [], "catalogue": catalogue, "nodata": 0},
        map={"core": 32, "halo": 16, "shard": 128, "enhance": {"block": 32}},
    )
    job = job_of(project)
    model = read_release(
        Path(shutil.copytree(releases[0].folder, job.workdir / "export" / "0123" / "release"))
    )
    opened = open_inputs(job, model, model.graph("fp32"), model.folder)
    done = map_scenes(job, *opened, graph_digest=model.info.graphs["fp32"].sha256)
    MapStore(map_place(job)).release("v1", done.run)
    return project


def changed(project: Project, change: Mapping[str, Any]) -> Job:
    """A job whose imagery, or its catalogue, is changed so."""
    ours = job_of(project).spec.imagery.model_dump(mode="json", exclude_unset=True)
    catalogue = ours["catalogue"] | change.get("catalogue", {})
    project.change_spec(imagery={**change, "catalogue": catalogue})
    return job_of(project)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"scale": 2.0}, r"imagery\.scale 1\.0, not 2\.0"),
        ({"bands": ["nir", "red", "green", "blue"]}, r"imagery\.bands \['red', .*, not \['nir'"),
        ({"catalogue": {"order": "oldest"}}, r"imagery\.catalogue\.order newest, not oldest"),
        (
            {"catalogue": {"cloud_mask": {"values": [9]}}},
            r"imagery\.catalogue\.cloud_mask None, not \{",
        ),
        (
            {"catalogue": {"resolution": 3}},
            r"imagery\.catalogue\.resolution None, not 3\.0",
        ),
    ],
    ids=["scale", "bands", "order", "cloud mask", "resolution"],
)
def test_another_setting_of_the_imagery_is_another_map(
    mapped: Project, change: dict[str, Any], says: str
) -> None:
    job = changed(mapped, change)
    with pytest.raises(MapStoreError, match=f"was mapped with {says}.*; an update would leave"):
        update_map(job, "v1")


@pytest.mark.parametrize(
    "change",
    [
        {"on_unreadable": "fail"},
        {"catalogue": {"dates": ["2020-01-01", "2021-12-31"], "pattern": "*.tif"}},
    ],
    ids=["unreadable scenes", "which scenes"],
)
def test_which_scenes_there_are_may_change(mapped: Project, change: dict[str, Any]) -> None:
    with pytest.raises(MapStoreError, match="no scene is new since release 'v1'"):
        update_map(changed(mapped, change), "v1")
