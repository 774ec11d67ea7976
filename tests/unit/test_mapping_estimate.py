"""Plans: every pixel has one owner, a region leaves the rest out, and what a plan says it takes is
what mapping does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from terrafine.cli.main import app
from terrafine.errors import MapStoreError, StageError
from terrafine.geometry import PixelGrid, Window
from terrafine.legend import SEVEN
from terrafine.mapping import Plan, Resources, compute_shard, estimate, plan_all
from terrafine.raster import Mosaic, Region, open_mosaics
from terrafine.raster.scene import ListedScene, SceneFiles
from terrafine.spec import EnhanceSpec, ImagerySpec, MappingSpec
from terrafine.stages import ENGINE, Job
from tests.catalogues import SIDE, Listed, write_items
from tests.imagery import QuickPredictor, small_spec
from tests.map_stores import region_of
from tests.scenes import Project

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

IMAGERY = ImagerySpec.model_validate({"catalogue": {"source": "c.json"}, "bands": ["red", "nir"]})
GRID = PixelGrid("EPSG:32650", 3.0, 3.0, 0.0, 0.0)
# near 117 degrees east, 40 degrees north
ORIGIN = (-1_466_667, 166_667)


def listed(*windows: Window) -> Mosaic:
    """Scenes that are nowhere but in a catalogue."""
    scenes = tuple(
        ListedScene(SceneFiles(f"s{i}", (f"s{i}.tif",)), GRID, window, 65535, IMAGERY, True)
        for i, window in enumerate(windows)
    )
    around = windows[0]
    for window in windows:
        around = around.union(window)
    numbers = tuple(range(1, len(scenes) + 1))
    return Mosaic("epsg32650", scenes, numbers, GRID, around, 65535, 2, skips=True)


_offsets = st.integers(0, 300)
_sizes = st.integers(1, 200)
_windows = st.builds(
    lambda row, col, height, width: Window(ORIGIN[0] + row, ORIGIN[1] + col, height, width),
    _offsets, _offsets, _sizes, _sizes,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(_windows, min_size=1, max_size=4), st.none() | _windows)
def test_every_pixel_has_exactly_one_owner(windows: list[Window], inside: Window | None) -> None:
    mosaic = listed(*windows)
    plan = Plan.of(mosaic, small_spec(), None if inside is None else region_of(GRID, inside))
    owners = np.zeros(plan.extent.shape, np.uint8)
    for shard in plan.shards():
        assert shard.shape == (64, 64)
        assert shard.is_aligned(64)
        owners[shard.slices(plan.extent)] += 1
    assert owners.max(initial=0) <= 1
    for window in windows:
        part = window if inside is None else window.intersection(inside)
        if part is not None:
            assert (owners[part.slices(plan.extent)] == 1).all(), "a pixel without an owner"


def resources(**changes: Any) -> Resources:
    values: dict[str, Any] = {
        "workers": 4, "gpus": 0, "mpixel_per_second": 2.0, "read_mb_per_second": 100.0,
        "price_worker_hour": 0.5, "price_gpu_hour": 3.0,
    }  # fmt: skip
    return Resources(**{**values, **changes})


def estimated(mosaic: Mosaic, spec: MappingSpec, *, region: Region | None = None, **machine: Any):
    plans = plan_all({"epsg32650": mosaic}, spec, region)
    return estimate(
        plans,
        {"epsg32650": mosaic},
        spec,
        resources(**machine),
        legend=SEVEN,
        pixel_km2={"epsg32650": 9e-6},
    )


@pytest.mark.parametrize("enhances", [True, False])
@pytest.mark.parametrize(("core", "block"), [(32, 32), (16, 32), (64, 16), (32, 64)])
def test_the_windows_are_those_that_mapping_asks_the_model_for(
    tmp_path: Path, enhances: bool, core: int, block: int
) -> None:
    scenes = [Listed("a", 100), Listed("b", 200, right=70), Listed("c", 3, right=50, down=95)]
    for scene in scenes:
        scene.write(tmp_path)
    source = write_items(tmp_path, scenes)
    imagery = IMAGERY.model_copy(
        update={"catalogue": IMAGERY.catalogue.model_copy(update={"source": source})}
    )
    (mosaic,) = open_mosaics(imagery, tmp_path).values()
    spec = small_spec(core=core, enhance=EnhanceSpec(enabled=enhances, block=block))
    predictor = QuickPredictor(spec.window, fill=mosaic.fill)
    pixels = 0
    for shard in Plan.of(mosaic, spec).shards():
        done = compute_shard(shard, imagery=mosaic, predictor=predictor, spec=spec, legend=SEVEN)
        pixels += int((done.source > 0).sum())
    found = estimated(mosaic, spec).total
    assert found.windows == len(predictor.asked)
    assert found.window_bytes == len(predictor.asked) * spec.window**2 * 2 * 2
    assert found.pixels == pixels == 3 * SIDE * SIDE
    assert found.bytes == pixels * 2 * 2
    assert found.area_km2 == pytest.approx(pixels * 9e-6)


def test_overlapping_scenes_are_counted_once() -> None:
    first = Window(*ORIGIN, 100, 100)
    found = estimated(
        listed(first, first, Window(first.row, first.col + 50, 100, 100)), small_spec()
    )
    assert found.total.pixels == 100 * 150
    assert found.total.scenes == 3


def test_hours_and_cost_follow_from_the_machines() -> None:
    mosaic = listed(Window(*ORIGIN, 1000, 1000))
    cores = estimated(mosaic, small_spec())
    total = cores.total
    assert cores.inference_hours == pytest.approx(total.window_pixels / 1e6 / 2.0 / 4 / 3600)
    assert cores.reading_hours == pytest.approx(total.window_bytes / 1e6 / 100 / 4 / 3600)
    assert cores.hours == pytest.approx(cores.inference_hours + cores.reading_hours)
    assert cores.cost == pytest.approx(cores.hours * 4 * 0.5)
    gpus = estimated(mosaic, small_spec(), gpus=2, mpixel_per_second=1000.0)
    assert gpus.bound_by == "reading"
    assert gpus.hours == pytest.approx(gpus.reading_hours)
    assert gpus.cost == pytest.approx(gpus.hours * (4 * 0.5 + 2 * 3.0))
    more = estimated(mosaic, small_spec(), gpus=2, mpixel_per_second=0.1, workers=64)
    assert more.bound_by == "inference"
    assert more.hours == pytest.approx(total.window_pixels / 1e6 / 0.2 / 3600)


def test_a_region_leaves_out_shards_and_keeps_the_stores_extent() -> None:
    mosaic = listed(Window(ORIGIN[0], ORIGIN[1], 400, 400))
    whole = Plan.of(mosaic, small_spec())
    corner = Window(ORIGIN[0] + 10, ORIGIN[1] + 10, 30, 30)
    part = Plan.of(mosaic, small_spec(), region_of(GRID, corner))
    assert part.extent == whole.extent
    assert 0 < len(part.touched) <= 4
    assert set(part.touched) < set(whole.touched)
    assert all(shard.intersection(corner) for shard in part.touched)
    found = estimated(mosaic, small_spec(), region=region_of(GRID, corner)).total
    assert (found.shards, found.pixels) < (len(whole.touched), 400 * 400)


def test_a_region_without_scenes_is_refused() -> None:
    mosaic = listed(Window(*ORIGIN, 100, 100))
    far = region_of(GRID, Window(ORIGIN[0] + 9000, ORIGIN[1], 50, 50))
    with pytest.raises(MapStoreError, match=r"region\.gpkg: the region \(longitude 11.* no scene"):
        plan_all({"epsg32650": mosaic}, small_spec(), far)


def catalogue_project(project: Project) -> None:
    """The project's scene, from a folder."""
    spec = yaml.safe_load(project.spec.read_text())
    (project.root / "scenes").mkdir()
    (project.root / "scene.tif").rename(project.root / "scenes" / "scene.tif")
    spec["imagery"] = {"catalogue": {"source": "scenes"}, "nodata": 0}
    project.spec.write_text(yaml.safe_dump(spec))


def test_the_command_prints_the_plan_and_draws_it(project: Project) -> None:
    catalogue_project(project)
    options = ["--workers", "3", "--gpus", "1", "--price-gpu", "2", "--price-worker", "0.1"]
    picture = project.root / "plan.png"
    done = CliRunner().invoke(
        app, ["map", "plan", str(project.spec), "--json", *options, "--png", str(picture)]
    )
    found = json.loads(done.stdout)
    assert found["total"]["shards"] == found["zones"][0]["shards"] > 0
    assert found["total"]["pixels"] == 192 * 192
    assert found["cost"] == pytest.approx(found["hours"] * 2.3)
    assert np.asarray(Image.open(picture).convert("L")).std() > 5, "something is drawn"
    shown = CliRunner().invoke(app, ["map", "plan", str(project.spec), *options]).output
    for said in ("epsg32650", "bound by", "assumed", "GPUs", "cost"):
        assert said in shown
    assert not (project.root / "runs").exists()


@pytest.mark.parametrize("form", ["map SPEC", "map --workdir RUN SPEC", "map run SPEC"])
def test_map_without_a_word_more_maps(project: Project, form: str) -> None:
    arguments = form.replace("SPEC", str(project.spec)).replace("RUN", str(project.root / "w"))
    done = CliRunner().invoke(app, arguments.split())
    assert isinstance(done.exception, StageError)
    assert "stage map needs stage export" in str(done.exception)


def test_a_stage_reads_a_catalogue_and_knows_when_it_changed(project: Project) -> None:
    job = Job.open(project.spec, data=None, workdir=project.root / "run")
    one_by_one = ENGINE.run(job, "label")
    catalogue_project(project)
    job = Job.open(project.spec, data=None, workdir=project.root / "run")
    listed = ENGINE.run(job, "label")
    assert listed.metrics == one_by_one.metrics, "the same chips"
    assert ENGINE.find(job, "label") == listed
    stored = project.root / "scenes" / "scene.tif"
    stored.write_bytes(stored.read_bytes())
    assert ENGINE.find(job, "label") is None, "a scene was written anew"


def test_spec_check_names_the_catalogue_and_the_region(project: Project) -> None:
    catalogue_project(project)
    project.change_spec(map={"region": "province.gpkg"})
    done = CliRunner().invoke(app, ["spec", "check", str(project.spec), "--json"])
    assert json.loads(done.stdout)["files"] == {
        "scenes": True, "province.gpkg": False, "product.tif": True, "reference.tif": True
    }  # fmt: skip
    assert (
        "catalogue scenes" in CliRunner().invoke(app, ["spec", "check", str(project.spec)]).output
    )


def test_a_tenth_of_a_country_is_planned_in_seconds(tmp_path: Path) -> None:
    from plan_country import AREA_KM2

    script = Path(__file__).parents[2] / "benchmarks" / "plan_country.py"
    result, picture = tmp_path / "plan.json", tmp_path / "plan.png"
    # in a process of its own: what it starts would be said to need as much memory as this one has
    options = ["--area", str(AREA_KM2 / 10), "--png", str(picture), "--json", str(result)]
    subprocess.run([sys.executable, str(script), *options], check=True, capture_output=True)
    found = json.loads(result.read_text())
    assert found["scenes"] > 1000
    assert found["zones"] >= 3
    # scenes and shards reach beyond the region's outline, and a zone's beyond its edge
    assert AREA_KM2 / 10 < found["area_km2"] < 1.4 * AREA_KM2 / 10
    assert found["pixels"] == pytest.approx(found["area_km2"] / 9e-6, rel=1e-6)
    assert found["peak_rss_mb"] < 1000
    assert found["cpu_seconds"] < 60
    assert (tmp_path / "plan.png").stat().st_size > 10_000
