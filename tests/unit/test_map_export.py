"""A release as files: Zarr equal to the store, GeoTIFFs in place and colour, STAC that links."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import geopandas
import numpy as np
import pystac
import pytest
import rasterio
import shapely
import zarr
from typer.testing import CliRunner

from terrafine.cli.main import app
from terrafine.errors import MapStoreError
from terrafine.geometry import Window
from terrafine.legend import SEVEN
from terrafine.mapping import MapStore
from terrafine.publish import write_overviews
from terrafine.publish.export_cogs import export_cogs
from terrafine.publish.export_zarr import export_zarr
from terrafine.raster import Region
from tests.map_stores import ZONES, Watched, random_map, release_maps, write_run

EXTENT = {
    "epsg32650": Window(-1_466_624 // 64 * 64, 166_656, 128, 192),
    "epsg32651": Window(-1_466_624 // 64 * 64, 100_032, 64, 64),
}


@pytest.fixture
def maps() -> dict[str, tuple[Window, np.ndarray]]:
    made = {z: (w, random_map(i, w.shape)) for i, (z, w) in enumerate(EXTENT.items())}
    made["epsg32650"][1][64:, 128:] = 255
    return made


@pytest.fixture
def store(tmp_path: Path, maps) -> MapStore:
    return release_maps(tmp_path / "map", "v1", maps)


@pytest.fixture
def large(tmp_path: Path) -> MapStore:
    """With shards that are worth an overview."""
    window = Window(-1024, 2048, 1024, 1024)
    store, run = write_run(
        tmp_path / "large", "v1", {"epsg32650": (window, random_map(0, window.shape))}, shard=512
    )
    write_overviews(store, run)
    store.release("v1", run)
    return store


def test_plain_zarr_is_a_pyramid_that_says_so(large, tmp_path):
    export_zarr(large, "v1", tmp_path / "out")
    zone = zarr.open_group(tmp_path / "out", mode="r")["epsg32650"]
    levels = zone.attrs["multiscales"]["layout"]
    assert [level["asset"] for level in levels] == ["landcover", "landcover_2", "landcover_4"]
    assert levels[2]["derived_from"] == "landcover_2"
    assert levels[2]["transform"] == {"scale": [2.0, 2.0], "translation": [0.5, 0.5]}
    for level, factor in zip(levels, (1, 2, 4), strict=True):
        assert zone[level["asset"]].shape == (1024 // factor, 1024 // factor)
    np.testing.assert_array_equal(zone["landcover_4"][:], large.overview("epsg32650", 4, "v1")[0])


def files(folder: Path) -> dict[str, int]:
    return {
        str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()
    }


def test_plain_zarr_has_the_pixels_and_the_attributes_of_the_store(store, maps, tmp_path):
    export_zarr(store, "v1", tmp_path / "out")
    root = zarr.open_group(tmp_path / "out", mode="r")
    assert root.attrs["release"] == {"name": "v1", "snapshot": store.snapshot("v1")}
    assert root.attrs["legend"] == SEVEN.model_dump(mode="json")
    ours = zarr.open_group(store.zarr_store("v1"), mode="r")
    for zone, (_, codes_HW) in maps.items():
        np.testing.assert_array_equal(root[f"{zone}/landcover"][:], codes_HW)
        for name, array in ours[zone].arrays():
            theirs = root[f"{zone}/{name}"]
            np.testing.assert_array_equal(theirs[...], array[...])
            assert theirs.attrs.asdict() == array.attrs.asdict()
            assert theirs.metadata.to_dict() == array.metadata.to_dict()
        assert set(ours[zone].attrs) <= set(root[zone].attrs)


def test_an_export_that_was_killed_goes_on_and_shows_nothing_before(store, tmp_path):
    out = tmp_path / "out"
    export_cogs(store, "v1", tmp_path / "other")
    shards = sorted((tmp_path / "other").glob("*/*/landcover.tif"))
    broken = Watched(store.path, broken=list(EXTENT["epsg32650"].tiles(64))[3])
    with pytest.raises(MapStoreError, match="the disk is gone"):
        export_cogs(broken, "v1", out)
    assert not out.exists()
    (partial,) = tmp_path.glob(".out.partial-*")
    before = files(partial)
    assert 0 < sum(name.endswith("landcover.tif") for name in before) < len(shards)
    export_cogs(store, "v1", out)
    after = files(out)
    assert {name: after[name] for name in before} == before, "written twice"
    assert set(after) == set(files(tmp_path / "other"))
    assert not partial.exists()


def test_a_shards_geotiff_lies_and_looks_as_the_map_does(store, maps, tmp_path):
    assert export_cogs(store, "v1", tmp_path / "out", arrays=("landcover", "source")) == 6
    window, codes_HW = maps["epsg32650"]
    with rasterio.open(tmp_path / "out/epsg32650/0001-0001/landcover.tif") as file:
        np.testing.assert_array_equal(file.read(1), codes_HW[64:128, 64:128])
        assert file.crs == "EPSG:32650"
        place = Window(window.row + 64, window.col + 64, 64, 64)
        assert file.transform == ZONES["epsg32650"].transform(place)
        assert file.nodata == 255
        colors = file.colormap(1)
        assert {c.code: (*c.rgb, 255) for c in SEVEN.classes}.items() <= colors.items()
        assert file.tags()["RELEASE"] == "v1"
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    assert not (tmp_path / "out/epsg32650/0001-0002").exists(), "a shard that was never mapped"
    record = json.loads((tmp_path / "out/release.json").read_text())
    assert record["snapshot"] == store.snapshot("v1")
    assert record["run"]["scenes"] == ["north"]


def test_large_shards_have_overviews_of_the_commonest_class(tmp_path):
    window = Window(-1024, 2048, 1024, 1024)
    codes_HW = random_map(0, window.shape)
    store = release_maps(tmp_path / "map", "v1", {"epsg32650": (window, codes_HW)}, shard=1024)
    export_cogs(store, "v1", tmp_path / "out", arrays=("landcover",))
    with rasterio.open(tmp_path / "out/epsg32650/0000-0000/landcover.tif") as file:
        assert file.overviews(1) == [2]
        half_HW = file.read(1, out_shape=(512, 512))
    block = codes_HW[100:102, 200:202].ravel().tolist()
    assert block.count(half_HW[50, 100]) == max(block.count(code) for code in block)


def test_one_file_opens_a_whole_zone(store, maps, tmp_path):
    export_cogs(store, "v1", tmp_path / "out")
    moved = (tmp_path / "out").rename(tmp_path / "elsewhere")
    for zone, (window, codes_HW) in maps.items():
        with rasterio.open(moved / f"landcover-{zone}.vrt") as file:
            np.testing.assert_array_equal(file.read(1), codes_HW)
            assert file.transform == ZONES[zone].transform(window)
            assert file.crs == ZONES[zone].crs
            assert file.nodata == 255
            assert file.colormap(1)[SEVEN.classes[0].code][:3] == SEVEN.classes[0].rgb
        with rasterio.open(moved / f"confidence-{zone}.vrt") as file:
            mapped = codes_HW != 255
            np.testing.assert_array_equal(file.read(1)[mapped], codes_HW[mapped] + 50)


def test_a_stac_client_finds_every_shard_from_the_collection(store, tmp_path):
    export_cogs(store, "v1", tmp_path / "out", stac=True)
    found = pystac.Collection.from_file(str(tmp_path / "out/collection.json"))
    items = list(found.get_items())
    assert len(items) == 6
    assert found.summaries.to_dict()["proj:code"] == ["EPSG:32650", "EPSG:32651"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pystac.validation.local_validator import LocalValidator

        assert not list(LocalValidator().collection_validator().iter_errors(found.to_dict()))
        for one in items:
            assert not list(LocalValidator().item_validator().iter_errors(one.to_dict()))
    whole = found.extent.spatial.bboxes[0]
    for one in items:
        assert one.get_collection() is not None
        assert one.get_collection().id == found.id == "v1"
        with rasterio.open(one.assets["landcover"].get_absolute_href()) as file:
            assert list(file.shape) == one.properties["proj:shape"]
            assert file.crs == one.properties["proj:code"]
        assert whole[0] <= one.bbox[0] <= one.bbox[2] <= whole[2]
        assert "classification:classes" in one.assets["landcover"].extra_fields
    assert len({one.id for one in items}) == 6


def test_a_region_exports_the_shards_that_touch_it(store, tmp_path):
    extent, grid = EXTENT["epsg32650"], ZONES["epsg32650"]
    inside = Window(extent.row + 10, extent.col + 70, 20, 20)
    frame = geopandas.GeoDataFrame(geometry=[shapely.box(*grid.bounds(inside))], crs=grid.crs)
    frame.to_file(tmp_path / "province.gpkg")
    region = Region.read("province.gpkg", tmp_path, key="--region")
    assert export_cogs(store, "v1", tmp_path / "out", region=region) == 1
    assert [p.name for p in (tmp_path / "out").glob("*/*/")] == ["0000-0001"]


def test_nothing_is_overwritten_and_nothing_exported_by_mistake(store, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/note.txt").write_text("mine")
    for export in (export_zarr, export_cogs):
        with pytest.raises(MapStoreError, match="not empty"):
            export(store, "v1", tmp_path / "out")
        with pytest.raises(MapStoreError, match="releases: v1"):
            export(store, "v9", tmp_path / "new")
    with pytest.raises(MapStoreError, match="no array trees"):
        export_cogs(store, "v1", tmp_path / "new", arrays=("trees",))
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "out/note.txt").read_text() == "mine"


def test_the_commands(store, tmp_path):
    def run(*words: object) -> str:
        done = CliRunner().invoke(app, ["map", *map(str, words)])
        assert done.exit_code == 0, done.output
        return done.stdout

    run("export", store.path, "--format", "zarr", "--into", tmp_path / "z")
    assert zarr.open_group(tmp_path / "z", mode="r").attrs["release"]["name"] == "v1"
    run("export", store.path, "--release", "v1", "--format", "stac", "--into", tmp_path / "s")
    assert (tmp_path / "s/collection.json").exists()
    window = EXTENT["epsg32651"]
    both = {"epsg32651": (window, random_map(9, window.shape))}
    other = tmp_path / "other"
    release_maps(other, "a", both)
    release_maps(other, "b", {"epsg32651": (window, random_map(8, window.shape))})
    assert [r["current"] for r in json.loads(run("releases", other, "--json"))] == [False, True]
    run("rollback", other, "a")
    assert [r["current"] for r in json.loads(run("releases", other, "--json"))] == [True, False]
    assert "yes" in run("releases", other)
