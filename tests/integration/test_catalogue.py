"""A catalogue through every stage to a map: a region of it, with a scene that cannot be read."""

from __future__ import annotations

import json

import geopandas
import numpy as np
import pytest
import shapely
import yaml

from terrafine.mapping import open_map
from terrafine.raster import Region
from terrafine.stages import ENGINE, Job
from tests.scenes import CRS, TRANSFORM, Project


def catalogue_of(project: Project) -> None:
    """Two scenes on one place: the upper one is gone, the lower is the project's."""
    pixels = {
        "proj:code": CRS, "proj:shape": [192, 192], "proj:transform": list(TRANSFORM)[:6],
    }  # fmt: skip
    items = [
        {
            "type": "Feature", "id": name, "geometry": None, "properties": pixels,
            "assets": {"image": {"href": f"{name}.tif", "roles": ["data"]}},
        }
        for name in ("gone", "scene")
    ]  # fmt: skip
    (project.root / "items.json").write_text(
        json.dumps({"type": "FeatureCollection", "features": items})
    )
    spec = yaml.safe_load(project.spec.read_text())
    spec["imagery"] = {"catalogue": {"source": "items.json"}, "nodata": 0}
    spec["map"]["region"] = "province.gpkg"
    project.spec.write_text(yaml.safe_dump(spec))


@pytest.mark.slow
def test_a_region_is_mapped_and_what_could_not_be_read_is_on_record(project: Project) -> None:
    catalogue_of(project)
    left, top = TRANSFORM @ (30, 20)
    right, bottom = TRANSFORM @ (70, 60)
    corners = geopandas.GeoSeries([shapely.box(left, bottom, right, top)], crs=CRS)
    geopandas.GeoDataFrame(geometry=corners).to_file(project.root / "province.gpkg")
    project.change_spec(
        training={"epochs": 1, "preliminary_epochs": 1, "crops_per_chip": 1},
        filter={"min_agreement": 0.0},
        gate={"min_overall_accuracy": 0.0},
        assess={"bootstrap": 100},
    )
    job = Job.open(project.spec, data=None, workdir=project.root / "run")
    stages = ENGINE.names(job.spec)
    done = [
        ENGINE.run(job, name) for name in stages[: stages.index("map") + 1] if name != "refuse"
    ][-1]
    assert done.metrics["unreadable_scenes"] == 1
    unreadable = json.loads(job.output(done, "unreadable").read_text())
    assert "gone.tif: no such file" in unreadable["gone"]
    store = open_map(job.workdir / "map.icechunk")
    run = str(done.metrics["run"])
    (zone,) = store.zones()
    source_HW = store.read(zone, store.window(zone), "source", run)
    assert set(np.unique(source_HW)) == {0, 2, 65535}, "the lower scene, by its number"
    grid = store.grid(zone)
    region = Region.read("province.gpkg", project.root, key="map.region")
    for shard in store.window(zone).tiles(job.spec.map.shard):
        inside = region.touches(grid.crs, [grid.bounds(shard)])[0]
        mapped = store.read(zone, shard, "source", run) != 65535
        assert mapped.all() if inside else not mapped.any()
    row, col = grid.pixel_of(left + 30, top - 30)
    assert store.explain(zone, row, col, run).scene == "scene"
