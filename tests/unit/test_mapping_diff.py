"""What changed between two releases: every pixel counted once, by class and by region."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import geopandas
import numpy as np
import pytest
import shapely
from typer.testing import CliRunner

from terrafine.cli.main import app
from terrafine.errors import MapStoreError, RasterError
from terrafine.geometry import Window
from terrafine.legend import SEVEN
from terrafine.mapping import MapStore, difference
from terrafine.raster import Regions
from tests.map_stores import ZONES, random_map, release_maps

# near 117 and 120 degrees east, 40 degrees north
EXTENT = {
    "epsg32650": Window(-1_466_624 // 64 * 64, 166_656, 192, 256),
    "epsg32651": Window(-1_466_624 // 64 * 64, 100_032, 128, 128),
}
CODES = (0, *SEVEN.codes, 255)
KM2 = {"epsg32650": 9e-6, "epsg32651": 18e-6}


def maps(seed: int) -> dict[str, tuple[Window, np.ndarray]]:
    return {z: (w, random_map(seed + i, w.shape)) for i, (z, w) in enumerate(EXTENT.items())}


@pytest.fixture
def before() -> dict[str, tuple[Window, np.ndarray]]:
    return maps(0)


@pytest.fixture
def after() -> dict[str, tuple[Window, np.ndarray]]:
    changed = maps(5)
    changed["epsg32650"][1][64:128, 64:128] = 255  # a shard that the second map leaves out
    return changed


@pytest.fixture
def store(tmp_path: Path, before, after) -> MapStore:
    release_maps(tmp_path / "map", "a", before)
    return release_maps(tmp_path / "map", "b", after)


def counted(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    return np.array([[int(((old == i) & (new == j)).sum()) for j in CODES] for i in CODES])


def test_the_matrix_is_the_one_that_numpy_counts(store, before, after):
    found = difference(store, "a", "b", pixel_km2=KM2, workers=2)
    expected = {z: counted(before[z][1], after[z][1]) for z in EXTENT}
    np.testing.assert_array_equal(found.total.pixels, sum(expected.values()))
    km2 = sum(expected[z] * KM2[z] for z in EXTENT)
    np.testing.assert_allclose(found.total.km2, km2)
    assert found.classes == ("no class", *SEVEN.names, "not mapped")
    assert sum(map(sum, found.total.pixels)) == sum(w.height * w.width for w in EXTENT.values())
    assert found.total.pixels[3][-1] > 0, "what is no longer mapped is counted as such"


def test_what_did_not_change_stands_on_the_diagonal(store):
    found = difference(store, "a", "a", pixel_km2=KM2)
    assert found.total.changed == 0
    assert np.trace(np.array(found.total.pixels)) == found.total.mapped > 0


def test_every_pixel_is_in_the_region_that_holds_its_centre(store, before, after, tmp_path):
    """Two provinces that overlap (the first keeps the pixel), the rest elsewhere; the file is in
    degrees, the map in UTM."""
    grid, extent = ZONES["epsg32650"], EXTENT["epsg32650"]
    west = Window(extent.row, extent.col, 100, 90)
    east = Window(extent.row + 40, extent.col + 50, 120, 130)
    frame = geopandas.GeoDataFrame(
        {"province": ["west", "east"]},
        geometry=[shapely.box(*grid.bounds(w)) for w in (west, east)],
        crs=grid.crs,
    )
    # dense edges: a straight line in UTM is none in degrees
    frame.geometry = frame.geometry.segmentize(10.0)
    frame.to_crs("EPSG:4326").to_file(tmp_path / "provinces.gpkg")
    regions = Regions.read(tmp_path / "provinces.gpkg")
    found = difference(store, "a", "b", pixel_km2=KM2, regions=regions)

    owner = np.zeros(extent.shape, int)
    owner[east.slices(extent)] = 2
    owner[west.slices(extent)] = 1
    old, new = before["epsg32650"][1], after["epsg32650"][1]
    by_name = {change.region: np.array(change.pixels) for change in found.regions}
    for number, name in ((1, "west"), (2, "east")):
        np.testing.assert_array_equal(
            by_name[name], counted(old[owner == number], new[owner == number])
        )
    everything = sum(by_name.values())
    np.testing.assert_array_equal(everything, found.total.pixels)
    assert set(by_name) == {"west", "east", "elsewhere"}


def test_regions_without_names_or_polygons_are_refused(tmp_path):
    point = geopandas.GeoDataFrame({"name": ["a"]}, geometry=[shapely.Point(117, 40)], crs=4326)
    point.to_file(tmp_path / "points.gpkg")
    with pytest.raises(RasterError, match="0 regions"):
        Regions.read(tmp_path / "points.gpkg")
    square = geopandas.GeoDataFrame({"size": [1]}, geometry=[shapely.box(0, 0, 1, 1)], crs=4326)
    square.to_file(tmp_path / "square.gpkg")
    with pytest.raises(RasterError, match="no column 'name' names the regions; it has size"):
        Regions.read(tmp_path / "square.gpkg")


def test_codes_that_the_legend_does_not_have_are_not_counted_as_something_else(tmp_path, before):
    window, codes = before["epsg32651"]
    codes[3, 5] = 77
    store = release_maps(tmp_path / "map", "a", {"epsg32651": (window, codes)})
    with pytest.raises(MapStoreError, match="holds codes that legend"):
        difference(store, "a", "a", pixel_km2=KM2)


def test_the_command_says_it_as_table_csv_and_json(store, before, after):
    def diff(*more: str) -> str:
        done = CliRunner().invoke(app, ["map", "diff", str(store.path), "a", "b", *more])
        assert done.exit_code == 0, done.output
        return done.stdout

    found = json.loads(diff("--json"))
    expected = sum(counted(before[z][1], after[z][1]) for z in EXTENT)
    np.testing.assert_array_equal(found["total"]["pixels"], expected)
    rows = list(csv.DictReader(io.StringIO(diff("--csv"))))
    assert sum(int(row["pixels"]) for row in rows) == expected.sum()
    assert "elsewhere" not in diff()


def test_a_release_that_is_not_there_is_named_with_those_that_are(store):
    with pytest.raises(MapStoreError, match=r"'c'; releases: a, b"):
        difference(store, "a", "c", pixel_km2=KM2)
