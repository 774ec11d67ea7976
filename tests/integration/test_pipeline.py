"""The KFP definition on kfp's local runner: every branch executes, and the map is right."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio

from terrafine.mapping import open_map
from terrafine.stages import ENGINE, Job
from tests.commands import called, started
from tests.scenes import Project, make_project

PROMOTED = [
    "label", "train-preliminary", "filter", "train", "prune", "assess", "gate", "export",
    "deploy", "map", "publish",
]  # fmt: skip
REFUSED = [*PROMOTED[:7], "refuse"]


def stages_done(workdir: Path) -> list[str]:
    """Stages that executed, in order, from the events the stages wrote themselves."""
    events = [json.loads(line) for line in (workdir / ".events").read_text().splitlines()]
    return [e["stage"] for e in events if e.get("state") == "done"]


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Path]:
    project = make_project(tmp_path_factory.mktemp("released"))
    done = started("run", project.spec, "--workdir", project.root / "run")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "released" in done.stdout
    return project, project.root / "run"


def test_the_promoted_branch_executes_every_stage(released: tuple[Project, Path]) -> None:
    _, workdir = released
    assert stages_done(workdir) == PROMOTED


def test_the_map_lies_where_the_image_lies(released: tuple[Project, Path]) -> None:
    project, workdir = released
    with (
        rasterio.open(project.root / "scene.tif") as scene,
        rasterio.open(workdir / "publish/latest/landcover.tif") as landcover,
    ):
        assert landcover.crs == scene.crs
        assert landcover.transform == scene.transform
        assert landcover.shape == scene.shape
        codes = landcover.read(1)
    # the corner without imagery, and only it, has no class
    np.testing.assert_array_equal(codes == 0, (project.image_CHW == 0).any(axis=0))


def test_geotiff_and_store_hold_the_same_pixels(released: tuple[Project, Path]) -> None:
    _, workdir = released
    store = open_map(workdir / "map.icechunk")
    job = Job.open(released[0].spec, data=None, workdir=workdir)
    with rasterio.open(workdir / "publish/latest/landcover.tif") as landcover:
        window = store.grid("epsg32650").window(landcover.transform, landcover.shape, where="map")
        np.testing.assert_array_equal(store.read("epsg32650", window), landcover.read(1))
    manifest = ENGINE.find(job, "publish")
    assert manifest is not None
    assert [r.name for r in store.releases()] == [manifest.metrics["release"]]
    assert store.overviews("epsg32650")


def test_a_second_run_does_nothing_again(released: tuple[Project, Path]) -> None:
    project, workdir = released
    before = {p: p.stat().st_mtime_ns for p in workdir.glob("*/*/manifest.json")}
    done = called("run", project.spec, "--workdir", workdir, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["stage"] == "publish"
    assert {p: p.stat().st_mtime_ns for p in workdir.glob("*/*/manifest.json")} == before


def test_assess_reads_the_store_and_the_geotiff_alike(released: tuple[Project, Path]) -> None:
    project, workdir = released
    reports = []
    for map_path in (workdir / "map.icechunk", workdir / "publish/latest/landcover.tif"):
        done = called(
            "assess", "--map", map_path, "--reference", project.root / "reference.tif", "--json"
        )
        assert done.returncode == 0, done.stderr
        reports.append(json.loads(done.stdout))
    assert reports[0]["matrix"] == reports[1]["matrix"]
    assert reports[0]["overall_accuracy"]["value"] > 0.5


def test_the_released_model_alone_makes_the_same_map(
    released: tuple[Project, Path], tmp_path: Path
) -> None:
    project, workdir = released
    for name in ("scene.tif", "spec.yaml"):
        shutil.copy(project.root / name, tmp_path)
    shutil.copytree(workdir / "export/latest/release", tmp_path / "champion")
    alone = Project(tmp_path, project.truth_HW, project.image_CHW)
    alone.change_spec(champion="champion", labels=None, assess=None)
    done = started("run", alone.spec, "--workdir", tmp_path / "run")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "released" in done.stdout
    assert stages_done(tmp_path / "run") == ["adopt", "map", "publish"]
    maps = []
    for folder in (workdir, tmp_path / "run"):
        with rasterio.open(folder / "publish/latest/landcover.tif") as landcover:
            maps.append(landcover.read(1))
    np.testing.assert_array_equal(*maps)


def test_the_refused_branch_executes_and_maps_nothing(tmp_path: Path) -> None:
    project = make_project(tmp_path, seed=1)
    # twelve steps of training do not beat a product that is right on four pixels in five
    project.change_spec(
        gate={"better_than_product": True}, training={"epochs": 1, "preliminary_epochs": 1}
    )
    done = started("run", project.spec, "--workdir", tmp_path / "run")
    assert done.returncode == 3, done.stderr
    assert stages_done(tmp_path / "run") == REFUSED
    assert "the map is not shown to be better than the product" in " ".join(done.stdout.split())
    assert not (tmp_path / "run" / "map.icechunk").exists()
    assert not (tmp_path / "run" / "export").exists()
    page = (tmp_path / "run/refuse/latest/report.html").read_text()
    assert "refused" in page.lower()
    # no other route leads past the gate
    exported = called("export", project.spec, "--workdir", tmp_path / "run")
    assert exported.returncode == 1
    assert "the gate refused this model" in exported.stderr
    mapped = called("map", project.spec, "--workdir", tmp_path / "run")
    assert mapped.returncode == 1
    assert "stage map needs stage export" in mapped.stderr


def test_an_error_in_a_stage_reaches_the_user_as_its_own_sentence(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    project.change_spec(labels={"crosswalk": "NLCD"})
    done = started("run", project.spec, "--workdir", tmp_path / "run")
    assert done.returncode == 1
    assert "product.tif" in done.stderr
    assert "not in crosswalk 'NLCD'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "run" / "label").glob("*.partial"))


def test_a_missing_file_is_found_before_anything_runs(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    (tmp_path / "reference.tif").unlink()
    done = called("run", project.spec, "--workdir", tmp_path / "run")
    assert done.returncode == 1
    assert "reference.tif: there is no such file" in done.stderr
    assert not (tmp_path / "run").exists()
