"""Catalogues: the same scenes from a STAC file, an API, a GeoParquet or a folder, on disk or in a
bucket; which one is on top, what is left out, and what happens to scenes that cannot be read."""

from __future__ import annotations

import json
import logging
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine

from terrafine.errors import RasterError, SpecError, TerrafineError
from terrafine.geometry import Window
from terrafine.raster import (
    Mosaic,
    catalogue_digest,
    catalogue_stamps,
    open_mosaics,
    scene_names,
)
from terrafine.spec import ImagerySpec
from tests.buckets import s3_bucket
from tests.catalogues import (
    SIDE,
    Listed,
    stac_api,
    write_collection,
    write_items,
    write_table,
)
from tests.scenes import CRS, TRANSFORM, write_raster

HOLE = (slice(0, 5), slice(None))
UPPER = Listed("a", 100, missing=HOLE)
LOWER = Listed("b", 200, right=10, day="2020-07-01", cloud=20)
FAR = Listed("c", 300, right=40, day="2020-08-01", cloud=10)
EAST = Listed("d", 400, crs="EPSG:32651", day="2020-09-01", cloud=5)
SCENES = [UPPER, LOWER, FAR, EAST]


def spec(source: str, *, nodata: float | None = 0, **options: Any) -> ImagerySpec:
    imagery = {k: options.pop(k) for k in ("on_unreadable", "crs", "scale") if k in options}
    return ImagerySpec.model_validate(
        {
            "catalogue": {"source": source, **options},
            "bands": ("red", "nir"),
            "nodata": nodata,
            **imagery,
        }
    )


def written(root: Path, scenes: list[Listed] = SCENES) -> Path:
    for scene in scenes:
        scene.write(root)
    return root


def mosaic(root: Path, source: str, **options: Any) -> Mosaic:
    (only,) = open_mosaics(spec(source, **options), root).values()
    return only


def top(root: Path, source: str, **options: Any) -> str:
    """Name of the scene that lies over the pixel which ``a`` and ``b`` share."""
    found = mosaic(root, source, **options)
    first = found.window
    number = found.read(Window(first.row + 10, first.col + 15, 1, 1))[1][0, 0]
    return scene_names({"": found})[number - 1]


def everything(mosaics: dict[str, Mosaic]) -> dict[str, Any]:
    """All pixels of all zones with the name of the scene each comes from."""
    names = np.array(["", *scene_names(mosaics)])
    found = {}
    for zone, m in mosaics.items():
        image_CHW, source_HW = m.read(m.window)
        found[zone] = m.window, m.grid, image_CHW.tolist(), names[source_HW].tolist()
    return found


def expected(root: Path) -> dict[str, Any]:
    scenes = [{"name": s.name, "files": [s.file]} for s in SCENES]
    return everything(open_mosaics(
        ImagerySpec.model_validate({"scenes": scenes, "bands": ("red", "nir"), "nodata": 0}), root
    ))  # fmt: skip


@pytest.mark.parametrize("write", [write_items, write_collection, write_table])
def test_every_form_of_catalogue_gives_the_mosaic_of_the_scenes_named_one_by_one(
    tmp_path: Path, write: Any
) -> None:
    source = write(written(tmp_path), SCENES)
    assert everything(open_mosaics(spec(source), tmp_path)) == expected(tmp_path)


def test_a_folder_gives_the_same_mosaic(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "scenes" / "notes.txt").write_text("no raster")
    found = everything(open_mosaics(spec("scenes"), tmp_path))
    for zone, (window, grid, image, names) in expected(tmp_path).items():
        assert found[zone][:3] == (window, grid, image)
        assert [[n.partition("_")[0] for n in row] for row in found[zone][3]] == names


def test_an_api_is_read_page_by_page_though_it_refuses_at_first(tmp_path: Path) -> None:
    written(tmp_path)
    with stac_api(SCENES, f"{tmp_path}/") as (url, asked):
        # a document from the network does not lead to files on this machine
        with pytest.raises(TerrafineError):
            everything(open_mosaics(spec(url, on_unreadable="fail"), tmp_path))
        assert sum("token=2" in path for path in asked) == 2, "the second page, twice"
        asked.clear()
        options = {"dates": ["2020-06-15", "2020-08-15"], "region": "box.geojson"}
        shape = shapely.box(116, 39, 118, 41)
        geopandas.GeoDataFrame(geometry=[shape], crs=4326).to_file(tmp_path / "box.geojson")
        mosaics = open_mosaics(spec(url, **options), tmp_path)
        assert scene_names(mosaics) == ("b", "c")
        query = next(path for path in asked if "datetime" in path)
        assert "datetime=2020-06-15T00:00:00Z/2020-08-15T23:59:59Z" in query
        assert "bbox=116.000000,39.000000,118.000000,41.000000" in query
        with pytest.raises(RasterError, match=r"whole STAC API; name one of its collections"):
            open_mosaics(spec(url.removesuffix("/collections/fine")), tmp_path)


@pytest.mark.slow
def test_a_bucket_gives_the_same_mosaic(tmp_path: Path) -> None:
    write_table(written(tmp_path), SCENES)
    write_items(tmp_path, SCENES)
    with s3_bucket() as bucket:
        for file in sorted(p for p in tmp_path.rglob("*") if p.is_file()):
            name = str(file.relative_to(tmp_path))
            boto3.client("s3").upload_file(str(file), bucket.removeprefix("s3://"), name)
        here = expected(tmp_path)
        for source in ("items.json", "scenes.parquet"):
            assert everything(open_mosaics(spec(f"{bucket}/{source}"), tmp_path)) == here
        # scenes in a bucket, and one that is not there
        missing = Listed("gone", 1)
        items = [s.item(f"{bucket}/") for s in (missing, *SCENES)]
        (tmp_path / "far.json").write_text(
            json.dumps({"type": "FeatureCollection", "features": items})
        )
        mosaics = open_mosaics(spec("far.json"), tmp_path)
        assert everything(mosaics) == here
        assert list(mosaics["epsg32650"].unreadable) == ["gone"]
        assert "gone_20200601.tif" in mosaics["epsg32650"].unreadable["gone"]
        folder = open_mosaics(spec(f"{bucket}/scenes"), tmp_path)
        assert [z[2] for z in everything(folder).values()] == [z[2] for z in here.values()]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("catalogue", "a"),
        ("cloud_cover", "b"),
        ("newest", "b"),
        ("oldest", "a"),
        ("priority", "b"),
    ],
)
def test_the_order_says_which_scene_is_on_top(tmp_path: Path, order: str, expected: str) -> None:
    scenes = [
        Listed("a", 100, cloud=30, priority=2),
        Listed("b", 200, right=10, cloud=20, priority=1, day="2020-07-01"),
    ]
    write_table(written(tmp_path, scenes), scenes)
    assert top(tmp_path, "scenes.parquet", order=order) == expected


def test_filters_leave_scenes_out(tmp_path: Path) -> None:
    source = write_items(written(tmp_path), SCENES)
    shape = shapely.union(FAR.footprint, EAST.footprint).buffer(-1e-5)
    geopandas.GeoDataFrame(geometry=[shape], crs=4326).to_crs(CRS).to_file(tmp_path / "far.gpkg")

    def left(**options: Any) -> set[str]:
        return set(scene_names(open_mosaics(spec(source, **options), tmp_path)))

    assert left() == {"a", "b", "c", "d"}
    assert left(max_cloud_cover=10) == {"a", "c", "d"}
    assert left(dates=["2020-07-01", "2020-08-01"]) == {"b", "c"}
    assert left(region="far.gpkg") == {"c", "d"}
    assert left(region="far.gpkg", dates=["2020-01-01", "2020-08-31"]) == {"c"}


def test_nothing_is_opened_before_it_is_read(tmp_path: Path) -> None:
    found = mosaic(tmp_path, write_items(tmp_path, [UPPER, LOWER]))
    first = found.window
    assert found.touches(Window(first.row, first.col + 29, 1, 1))
    assert not found.touches(Window(first.row, first.col + 30, 1, 1))
    assert not found.unreadable, "no scene was missed"
    _, source_HW = found.read(found.window)
    assert (source_HW == 0).all()
    assert set(found.unreadable) == {"a", "b"}


@pytest.mark.parametrize("damage", ["missing", "truncated", "no raster", "other place", "bands"])
def test_the_next_scene_fills_in_for_one_that_cannot_be_read(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    written(tmp_path, [LOWER])
    path = tmp_path / UPPER.file
    if damage != "missing":
        UPPER.write(tmp_path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-40])
    elif damage == "no raster":
        path.write_text("moved")
    elif damage == "other place":
        UPPER.write(tmp_path, transform=TRANSFORM @ Affine.translation(0, 500))
    elif damage == "bands":
        one = np.ones((1, SIDE, SIDE), np.uint16)
        write_raster(path, one, nodata=0, transform=UPPER.transform)
    source = write_items(tmp_path, [UPPER, LOWER])
    found = mosaic(tmp_path, source)
    with caplog.at_level(logging.WARNING):
        image_CHW, source_HW = found.read(found.window)
        found.read(found.window)
    assert (source_HW[:, 10:] == 2).all()
    assert (source_HW[:, :10] == 0).all()
    assert (image_CHW[0, :, 10:] == 200).all()
    assert list(found.unreadable) == ["a"]
    assert UPPER.file in found.unreadable["a"]
    assert sum("scene a is passed over" in r.message for r in caplog.records) == 1, "said once"
    strict = mosaic(tmp_path, source, on_unreadable="fail")
    with pytest.raises(RasterError, match=r"a_20200601\.tif"):
        strict.read(strict.window)


def test_scenes_named_one_by_one_may_be_passed_over_too(tmp_path: Path) -> None:
    written(tmp_path, [LOWER])
    scenes = [{"name": s.name, "files": [s.file]} for s in (UPPER, LOWER)]
    values = {"scenes": scenes, "bands": ("red", "nir")}
    with pytest.raises(RasterError, match="no such file"):
        open_mosaics(ImagerySpec.model_validate(values), tmp_path)
    skipping = ImagerySpec.model_validate({**values, "on_unreadable": "skip"})
    (found,) = open_mosaics(skipping, tmp_path).values()
    assert set(np.unique(found.read(found.window)[1])) == {2}, "it keeps its number"
    assert list(found.unreadable) == ["a"]


def test_a_damaged_file_of_a_folder_is_reported(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "scenes" / "e_20200101.tif").write_text("not a raster")
    found = open_mosaics(spec("scenes"), tmp_path)
    assert len(scene_names(found)) == 4
    assert "no raster" in found["epsg32650"].unreadable["e_20200101"]
    with pytest.raises(RasterError, match=r"e_20200101\.tif"):
        open_mosaics(spec("scenes", on_unreadable="fail"), tmp_path)


def test_each_file_says_itself_what_is_missing_unless_the_spec_does(tmp_path: Path) -> None:
    scenes = [UPPER, Listed("b", 200, right=10, nodata=9, missing=(slice(18, 20), slice(None)))]
    source = write_items(written(tmp_path, scenes), scenes)
    found = mosaic(tmp_path, source, nodata=None)
    image_CHW, source_HW = found.read(found.window)
    assert found.fill == 65535
    assert (source_HW[:5, :10] == 0).all()
    assert (source_HW[18:, 20:] == 0).all()
    assert (image_CHW[:, source_HW == 0] == 65535).all()
    assert (source_HW[5:18, 20:] == 2).all()


def test_what_the_spec_and_what_each_file_calls_missing_lets_the_next_scene_through(
    tmp_path: Path,
) -> None:
    """The model gets the spec's number for both, and no pixel of 65535 is taken for imagery."""
    last = slice(18, 20), slice(None)
    other = Listed("o", 150, nodata=65535, missing=last)
    scenes = [other, Listed("z", 200, nodata=0, missing=HOLE), LOWER]
    source = write_items(written(tmp_path, scenes), scenes)
    path = tmp_path / other.file
    with rasterio.open(path, "r+") as file:
        image_CHW = file.read()
        image_CHW[:, :5] = 0
        file.write(image_CHW)
    found = mosaic(tmp_path, source, nodata=0)
    image_CHW, source_HW = found.read(found.window)
    assert found.fill == 0
    assert (source_HW[5:18, :20] == 1).all(), "the upper scene where it has pixels"
    assert (source_HW[18:, :20] == 2).all(), "65535 is missing, though the spec says 0"
    assert (source_HW[:5, :10] == 0).all(), "0 is missing, though the file says 65535"
    assert (source_HW[:5, 10:] == 3).all()
    assert (image_CHW[:, source_HW == 0] == 0).all()
    assert image_CHW.max() == 201


def test_a_cloud_mask_of_coarser_pixels_lets_the_next_scene_through(tmp_path: Path) -> None:
    written(tmp_path, [UPPER, LOWER])
    mask = np.full((7, 7), 4, np.uint8)
    mask[3, :5] = 9
    coarse = UPPER.transform @ Affine.scale(3)
    write_raster(tmp_path / "scenes" / "mask.tif", mask, nodata=None, transform=coarse)
    items = [UPPER.item(), LOWER.item()]
    for item in items:
        item["assets"]["clouds"] = {"href": "scenes/mask.tif"}
    (tmp_path / "items.json").write_text(
        json.dumps({"type": "FeatureCollection", "features": items[:1]})
    )
    masked = {"asset": "clouds", "values": [8, 9]}
    found = mosaic(tmp_path, "items.json", cloud_mask=masked)
    _, source_HW = found.read(found.window)
    assert (source_HW[9:12, :15] == 0).all(), "three image pixels for one of the mask's"
    assert (source_HW[9:12, 15:20] == 1).all()
    assert (source_HW[12:] == 1).all()
    # the same mask is no mask of a scene that it does not cover
    (tmp_path / "items.json").write_text(
        json.dumps({"type": "FeatureCollection", "features": items})
    )
    found = mosaic(tmp_path, "items.json", cloud_mask=masked)
    found.read(found.window)
    assert "does not cover it" in found.unreadable["b"]


def test_a_cloud_mask_may_be_a_band_of_the_image(tmp_path: Path) -> None:
    scene = Listed("a", 7)
    image_CHW = np.full((3, SIDE, SIDE), 7, np.uint16)
    image_CHW[2, 4] = 1
    (tmp_path / "scenes").mkdir()
    write_raster(tmp_path / scene.file, image_CHW, nodata=0, transform=scene.transform)
    source = write_table(tmp_path, [scene])
    found = mosaic(tmp_path, source, cloud_mask={"band": 3, "values": [1]})
    _, source_HW = found.read(found.window)
    assert np.flatnonzero((source_HW == 0).any(axis=1)).tolist() == [4]


def test_a_folder_of_single_bands_in_jpeg_2000_with_a_mask(tmp_path: Path) -> None:
    folder = tmp_path / "safe" / "T50"
    folder.mkdir(parents=True)
    for band, value in {"B04": 10, "B08": 20, "B11": 99}.items():
        array = np.full((64, 64), value, np.uint16)
        write_raster(
            folder / f"T50SNA_20200601T030000_{band}.jp2", array, nodata=None,
            driver="JP2OpenJPEG", quality=100, reversible="YES",
        )  # fmt: skip
    mask = np.full((32, 32), 4, np.uint8)
    mask[:, 16:] = 9
    write_raster(
        folder / "T50SNA_20200601T030000_SCL.jp2", mask, nodata=None, driver="JP2OpenJPEG",
        quality=100, reversible="YES", transform=TRANSFORM @ Affine.scale(2),
    )  # fmt: skip
    options: dict[str, Any] = {
        "pattern": "**/*_{band}.jp2",
        "assets": ["B04", "B08"],
        "cloud_mask": {"asset": "SCL", "values": [9]},
        "dates": ["2020-06-01", "2020-06-01"],
    }
    found = mosaic(tmp_path, "safe", **options)
    assert scene_names({"": found}) == ("T50/T50SNA_20200601T030000",)
    image_CHW, source_HW = found.read(found.window)
    assert (source_HW[:, :32] == 1).all()
    assert (source_HW[:, 32:] == 0).all()
    assert set(np.unique(image_CHW[0])) == {0, 10}
    assert set(np.unique(image_CHW[1])) == {0, 20}
    (folder / "T50SNA_20200601T030000_B08.jp2").unlink()
    with pytest.raises(RasterError, match=r"no scene is left of the 0 .*1 cannot be read"):
        mosaic(tmp_path, "safe", **options)


def test_scenes_off_the_maps_pixels_give_their_nearest_ones(tmp_path: Path) -> None:
    ramp = np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE) + 1
    scenes = [
        Listed("a", 0, right=0.4, down=-0.3),
        Listed("b", 0, right=20, said={"proj:shape": None}),
    ]
    (tmp_path / "scenes").mkdir()
    for scene in scenes:
        path = tmp_path / scene.file
        write_raster(path, np.stack([ramp, ramp]), nodata=0, transform=scene.transform)
    source = write_items(tmp_path, scenes)
    found = mosaic(tmp_path, source, resolution=3)
    image_CHW, source_HW = found.read(found.window.buffered(3))
    assert (image_CHW[0][source_HW == 1].reshape(SIDE, SIDE) == ramp).all()
    # pixel by pixel, window by window: always the same number
    for tile in found.window.tiles(8):
        part_CHW, _ = found.read(tile)
        inside = tile.intersection(found.window.buffered(3))
        assert inside is not None
        whole = image_CHW[:, *inside.slices(found.window.buffered(3))]
        assert (part_CHW[:, *inside.slices(tile)] == whole).all()
    twice = mosaic(tmp_path, source, resolution=1.5)
    image_CHW, source_HW = twice.read(twice.window)
    assert (source_HW == 1).sum() == (2 * SIDE) ** 2, "every pixel is taken four times"
    assert np.bincount(image_CHW[0][source_HW == 1])[1:].tolist() == [4] * SIDE**2
    strict = mosaic(tmp_path, write_items(tmp_path, scenes[::-1][1:] + scenes[:1]))
    assert strict.grid.dx == 3


def test_without_a_resolution_a_scene_off_the_grid_cannot_be_read(tmp_path: Path) -> None:
    scenes = [UPPER, Listed("b", 200, right=10.5)]
    found = mosaic(tmp_path, write_items(written(tmp_path, scenes), scenes))
    _, source_HW = found.read(found.window)
    assert set(np.unique(source_HW)) == {0, 1}
    assert "0.50 pixels off" in found.unreadable["b"]


def test_a_footprint_alone_needs_a_resolution(tmp_path: Path) -> None:
    bare = {"proj:transform": None, "proj:shape": None}
    scenes = [Listed("a", 100, said=bare), Listed("b", 200, right=10, said=bare)]
    source = write_items(written(tmp_path, scenes), scenes)
    with pytest.raises(RasterError, match=r"scene a states no pixels; set .*resolution"):
        mosaic(tmp_path, source)
    found = mosaic(tmp_path, source, resolution=3)
    _, source_HW = found.read(found.window)
    assert (source_HW == 1).sum() == SIDE * SIDE
    assert (source_HW == 2).sum() == SIDE * SIDE // 2


def test_workers_get_the_mosaic_without_opening_it(tmp_path: Path) -> None:
    source = write_items(written(tmp_path), SCENES)
    mosaics = open_mosaics(spec(source), tmp_path)
    assert everything(pickle.loads(pickle.dumps(mosaics))) == everything(mosaics)  # noqa: S301


def test_the_digest_follows_catalogue_and_files(tmp_path: Path) -> None:
    source = write_items(written(tmp_path), SCENES)
    before = catalogue_digest(spec(source), tmp_path)
    assert catalogue_digest(spec(source), tmp_path) == before
    assert catalogue_digest(spec(source, max_cloud_cover=10), tmp_path) != before
    LOWER.write(tmp_path, compress="deflate")
    changed = catalogue_digest(spec(source), tmp_path)
    assert changed != before
    write_items(tmp_path, [*SCENES, Listed("e", 1, right=60)])
    assert catalogue_digest(spec(source), tmp_path) not in (before, changed)


def test_the_stamp_of_a_scene_changes_with_its_file_and_with_what_the_catalogue_says(
    tmp_path: Path,
) -> None:
    written(tmp_path)
    source = write_items(tmp_path, SCENES)
    before = catalogue_stamps(spec(source), tmp_path)
    assert before.keys() == {scene.name for scene in SCENES}
    assert catalogue_stamps(spec(source), tmp_path) == before
    first, *others = SCENES
    (tmp_path / first.file).write_bytes((tmp_path / first.file).read_bytes() + b"0")
    after = catalogue_stamps(spec(source), tmp_path)
    assert {name for name in before if before[name] != after[name]} == {first.name}
    anew = replace(first, said={"updated": "2024-05-01T00:00:00Z"})
    source = write_items(tmp_path, [anew, *others])
    said = catalogue_stamps(spec(source), tmp_path)
    assert {name for name in before if said[name] != after[name]} == {first.name}


def test_a_scene_behind_a_url_has_the_stamp_that_the_catalogue_says_or_none(tmp_path: Path) -> None:
    far = [scene.item("https://example.org/") for scene in SCENES[:2]]
    far[0]["properties"]["updated"] = "2024-05-01T00:00:00Z"
    items = {"type": "FeatureCollection", "features": far}
    (tmp_path / "far.json").write_text(json.dumps(items))
    assert catalogue_stamps(spec("far.json"), tmp_path).keys() == {SCENES[0].name}


def _said(**said: Any) -> list[Listed]:
    return [Listed("a", 100, said=said)]


def _box(*numbers: Any) -> list[Listed]:
    return _said(**{"proj:transform": None, "proj:bbox": list(numbers)})


@pytest.mark.parametrize(
    ("scenes", "options", "message"),
    [
        (SCENES, {"dates": ["2021-01-01", "2021-02-01"]}, "no scene is left of the 4"),
        (SCENES, {"assets": ["B04", "B08"]}, "scene a has no asset 'B04'; it has image, thumbnail"),
        (SCENES, {"cloud_mask": {"asset": "scl", "values": [9]}}, "no asset 'scl'"),
        (_said(**{"proj:code": None}), {}, "scene a states no CRS"),
        (_said(**{"proj:code": "EPSG:moon"}), {}, "'EPSG:moon' is no CRS"),
        (_said(**{"eo:cloud_cover": None}), {"max_cloud_cover": 10}, "states no cloud cover"),
        (_said(datetime=None), {"order": "newest"}, "states no time, which .*order asks for"),
        (_said(datetime="yesterday"), {}, "'yesterday' is no time"),
        (_said(**{"proj:transform": [3, 1, 0, 0, -3, 0]}), {}, "rotated or not north-up"),
        (_said(**{"proj:transform": [3, 0, 0]}), {}, r"scene a: proj:transform is \[3, 0, 0\]"),
        (_said(**{"proj:transform": [3, 0, "x", 0, -3, 0]}), {}, r"transform is \[3, 0, 'x'"),
        (_said(**{"proj:transform": 3}), {}, "proj:transform is 3, which says nothing"),
        (_said(**{"proj:shape": [20, None]}), {}, r"scene a: proj:shape is \[20, None\]"),
        (_said(**{"proj:shape": [20]}), {}, r"proj:shape is \[20\]"),
        (_box(1, 2, 3), {}, r"scene a: proj:bbox is \[1, 2, 3\]"),
        (_box(1, None, 3, 4), {}, r"proj:bbox is \[1, None, 3, 4\]"),
        ([UPPER, Listed("a", 1, day="2020-02-02")], {}, "two scenes are called a"),
    ],
)  # fmt: skip
def test_a_catalogue_that_lacks_what_is_asked_is_refused(
    tmp_path: Path, scenes: list[Listed], options: dict[str, Any], message: str
) -> None:
    source = write_items(tmp_path, scenes)
    with pytest.raises(RasterError, match=message):
        open_mosaics(spec(source, **options), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"geometry": {"type": "Polygon"}}, r"scene a: geometry is \{'type': 'Polygon'\}"),
        ({"geometry": {"type": "Polygon", "coordinates": [[1, 2]]}}, "scene a: geometry is"),
        ({"geometry": {"type": "Blob", "coordinates": []}}, "Unknown geometry type"),
        ({"geometry": "POLYGON"}, "geometry is 'POLYGON'"),
        ({"geometry": {"type": "Polygon", "coordinates": []}}, "scene a lies nowhere"),
        ({"assets": ["image"]}, r"items\.json: scene a: assets is \['image'\]"),
        ({"assets": {"image": {"href": 7}}}, "scene a: assets is"),
        ({"properties": [1]}, r"scene a: properties is \[1\]"),
    ],
)
def test_a_damaged_item_is_named_with_what_it_says(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    (listed,) = _said(**{"proj:transform": None})
    document = {"type": "FeatureCollection", "features": [{**listed.item(), **changes}]}
    (tmp_path / "items.json").write_text(json.dumps(document))
    with pytest.raises(RasterError, match=message):
        open_mosaics(spec("items.json", resolution=3), tmp_path)


def test_a_bounding_box_may_have_heights(tmp_path: Path) -> None:
    left, top = UPPER.transform @ (0, 0)
    right, bottom = UPPER.transform @ (SIDE, SIDE)
    flat, high = (left, bottom, right, top), (left, bottom, 100.0, right, top, 900.0)
    found = []
    for box in (flat, high):
        (listed,) = _box(*box)
        found.append(mosaic(tmp_path, write_items(tmp_path, [listed]), resolution=3).window)
    assert found[0] == found[1]
    assert found[0].shape == (SIDE, SIDE)


def test_damaged_catalogues_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cut.json").write_text('{"type": "FeatureColl')
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    (tmp_path / "other.json").write_text('{"type": "Topology"}')
    (tmp_path / "featureless.json").write_text('{"type": "FeatureCollection"}')
    (tmp_path / "odd.json").write_text('{"type": "FeatureCollection", "features": [3]}')
    (tmp_path / "linked.json").write_text('{"type": "Catalog", "links": [{"rel": "item"}]}')
    (tmp_path / "empty").mkdir()
    table = geopandas.GeoDataFrame({"id": ["a"]}, geometry=[UPPER.footprint], crs=4326)
    table.to_parquet(tmp_path / "fileless.parquet")
    table.assign(files=[5]).to_parquet(tmp_path / "numbered.parquet")
    for source, message in {
        "cut.json": r"cut\.json: is no JSON",
        "cut.parquet": r"cut\.parquet: cannot be read",
        "other.json": r"no STAC item, item collection.*'Topology'",
        "featureless.json": r"featureless\.json: features is None",
        "odd.json": r"odd\.json: features is \[3\]",
        "linked.json": r"linked\.json: links is \[{'rel': 'item'}\].*'href'",
        "empty": "no scene is left of the 0",
        "fileless.parquet": "row 1 names no file",
        "numbered.parquet": "row 1: files is 5",
        "gone.json": "there is no such catalogue",
        "ftp://far.away/scenes": "cannot open",
        "http://127.0.0.1:1/items.json": "does not answer",
    }.items():
        with pytest.raises(TerrafineError, match=message):
            open_mosaics(spec(source), tmp_path)


def test_a_catalogue_cannot_lead_out_of_the_data_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    item = UPPER.item()
    item["assets"]["image"]["href"] = "../secret.tif"
    (root / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": [item]}))
    with pytest.raises(SpecError, match="leads out of the data root"):
        open_mosaics(spec("items.json"), root)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "either `scenes`"),
        ({"scenes": [{"name": "a", "files": ["a"]}], "catalogue": {"source": "c"}}, "not both"),
        ({"catalogue": {"source": "../c.json"}}, "leaves the data root"),
        ({"catalogue": {"source": "c", "dates": ["2020-02-01", "2020-01-01"]}}, "after the last"),
        ({"catalogue": {"source": "c", "max_cloud_cover": 101}}, "less than or equal to 100"),
    ],
)  # fmt: skip
def test_the_spec_says_what_is_wrong(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImagerySpec.model_validate(values)
